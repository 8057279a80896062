"""Any application, wrapped as people wrap theirs in wsgi.py. ``APPLICATION`` names its module."""

import os
from importlib import import_module

from wsgi_dbguard import DBGuard

application = DBGuard(import_module(os.environ["APPLICATION"]).application)
