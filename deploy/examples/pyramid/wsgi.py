"""What servers load: the application of production.ini::

export DATABASE_URL=postgresql+psycopg2://notes@localhost/notes
python -c "import notes; notes.create_tables()"
gunicorn --config ../../gunicorn.conf.py
curl http://127.0.0.1:8000/notes
"""

from pathlib import Path

from pyramid.paster import get_app

application = get_app(str(Path(__file__).with_name("production.ini")))
