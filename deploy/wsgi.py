from app import create_app

from wsgi_dbguard import DBGuard

# The servers look for the name `application`. The guard stands around everything else, so that it sees each
# request's beginning and end; given no engines it guards every SQLAlchemy engine of the process. While the database
# restarts, requests wait for it for up to ten seconds; without `hold` they get a 503 at once. health="/-/db" adds
# health endpoints and a status page under that path; the sites in nginx/ do not show them to the public.
application = DBGuard(create_app(), hold=10.0)
