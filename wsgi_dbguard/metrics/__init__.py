"""What the guards count, for Prometheus (`wsgi_dbguard.metrics.prometheus`) and OpenTelemetry (``.opentelemetry``).

Nothing here is imported by the rest of the package: who does not import it pays nothing. Each of the two needs the
extra of its name (``pip install wsgi-dbguard[prometheus]``). What is exported, and where it comes from: `instruments`.
"""
