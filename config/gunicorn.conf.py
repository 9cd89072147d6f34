"""How gunicorn runs the web tier. Every value that a deployment may want to change is a setting (config/README.md)."""

from app import settings, telemetry

_settings = settings.load()

wsgi_app = "app.web:make()"
bind = [_settings.web_bind]
workers = _settings.web_workers
# A client that waits holds a thread and nothing else.
worker_class = "gthread"
threads = _settings.web_threads
# Above the longest `?wait=`: a restart lets those who wait have their answer.
graceful_timeout = 65
timeout = 90
keepalive = 65
max_requests = 0
# No socket of its own on a read-only file system.
control_socket_disable = True
logconfig_dict = telemetry.config(_settings, "web")
proc_name = "darkroom-web"
