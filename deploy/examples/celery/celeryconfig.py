"""What Celery is told: https://docs.celeryq.dev/en/stable/userguide/configuration.html."""

broker_url = "redis://localhost:6379/0"
result_backend = "redis://localhost:6379/1"
