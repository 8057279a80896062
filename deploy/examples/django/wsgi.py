"""Notes, by Django with SQLAlchemy beside its ORM, guarded::

export DATABASE_URL=postgresql+psycopg2://notes@localhost/notes SECRET_KEY="a secret of yours"
python -c "import wsgi, views; views.create_tables()"
PYTHONPATH=. django-admin check --deploy --tag dbguard --settings settings
gunicorn --config ../../gunicorn.conf.py
curl http://127.0.0.1:8000/notes
"""

import os

from wsgi_dbguard.contrib.django import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = get_wsgi_application()
