"""Django's settings, with those of the guard. One database for both: Django's ORM, and SQLAlchemy beside it."""

import os

from sqlalchemy import make_url

DATABASE_URL = os.environ["DATABASE_URL"]  # as SQLAlchemy writes it
_url = make_url(DATABASE_URL)

SECRET_KEY = os.environ["SECRET_KEY"]
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "views"
WSGI_APPLICATION = "wsgi.application"
INSTALLED_APPS = ["wsgi_dbguard.contrib.django"]  # for `django-admin check --deploy`
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": _url.host,
        "PORT": _url.port,
        "USER": _url.username,
        "PASSWORD": _url.password,
        "NAME": _url.database,
        # Kept over requests. The guard looks after SQLAlchemy's connections, Django after its own.
        "CONN_MAX_AGE": 600,
        "CONN_HEALTH_CHECKS": True,
    }
}

# Any setting of the guard. Requests wait for a database that restarts.
DBGUARD_HOLD = 10.0
