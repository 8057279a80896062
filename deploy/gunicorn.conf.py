"""gunicorn with the database guard. Copy it beside wsgi.py; gunicorn finds ./gunicorn.conf.py by itself.

Every line can be overridden without editing: `gunicorn --workers 8`, or GUNICORN_CMD_ARGS="--workers 8".
See https://docs.gunicorn.org/en/stable/settings.html
"""

import os

# The fork guard. Own hooks go below this line; one that the guard has as well is set to both, since
# gunicorn calls one function per hook:   post_fork = compose(my_post_fork, post_fork)
from wsgi_dbguard.hooks.gunicorn import *

wsgi_app = "wsgi:application"

# Loopback, for nginx on this machine. In a container: --bind 0.0.0.0:8000. The systemd unit binds a unix
# socket.
bind = f"127.0.0.1:{os.environ.get('PORT', '8000')}"

# Threads, since a request that waits for the database needs no processor. Requests at once are workers x
# threads, and so many connections the database must allow, as each thread uses one at a time. SQLAlchemy's
# own limit is per worker: pool_size + max_overflow (5 + 10) must not be smaller than threads.
worker_class = "gthread"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
threads = 4

# Each worker imports the application for itself. With True the workers share its memory, but all that the
# import opens belongs to the master: the fork guard cuts the workers off from inherited connections, but
# those of the master stay open and idle for ever, and SIGHUP does not load new code.
preload_app = False

# Seconds without a sign of life from a worker. A thread that waits for the database does not stop a gthread
# worker's sign of life: it is no limit on a request or a query. DBGuard(application, deadline=30) is one, and
# statement_timeout in the database. The query of a worker that is aborted is stopped by the guard's
# worker_abort.
timeout = 60

# Seconds that running requests get on SIGTERM and SIGHUP. Less than TimeoutStopSec= of the systemd unit,
# which kills.
graceful_timeout = 30

# Seconds an idle connection of a client or proxy stays open. More than the upstream's keepalive_timeout in
# nginx, so that nginx closes first: a request never meets a connection that gunicorn is just closing.
keepalive = 15

# A worker is replaced after this many requests, against slow leaks; the jitter keeps them from all going at
# once.
max_requests = 10_000
max_requests_jitter = 1_000

# Workers give their sign of life by touching a file here. On a disk that is slow to answer they would be
# taken for dead.
worker_tmp_dir = "/dev/shm"

# Figures of all workers for Prometheus, whichever of them is asked: a directory that they share and that is
# empty at the start, and prometheus.install() in wsgi.py (see wsgi_dbguard.metrics.prometheus). The systemd
# unit can make one; by hand, after mkdir /run/notes/metrics, this line names it. child_exit, of the import
# above, removes the gauges of workers that have ended.
# raw_env = ["PROMETHEUS_MULTIPROC_DIR=/run/notes/metrics"]

# The guard's readyz (health="/-/db" of DBGuard, off by default) says 503 from SIGTERM on, on connections that are
# kept; new ones are not taken by then. A balancer that is to hear of it in time asks on a kept connection.

# The master of 25.1 and later serves `gunicornc` from a thread and a socket in $HOME: nothing here needs
# it, and a master that forks is best left with one thread.
control_socket_disable = True

# To stderr, where systemd and containers look for it. No access log: nginx has one. "-" writes it to
# stdout.
errorlog = "-"
accesslog = None
