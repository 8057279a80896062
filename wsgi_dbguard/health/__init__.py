"""Health endpoints and the status page, for the setting ``health``. Who does not set it imports nothing of this.

``livez`` and ``readyz`` are for machines, see `readiness`; the page is for people, see `endpoints`.
"""
