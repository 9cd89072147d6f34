"""How gunicorn runs the web tier. Every value that a deployment may want to change is a setting (config/README.md)."""

import resource
from typing import Any

from app import metrics, settings, telemetry
from app.serving import DrainingWorker

_settings = settings.load()
# Even where hardly any file may be open, and whatever becomes of those who come then.
_FEWEST = 8


def _files() -> int:
    """How many files a process may have open, after asking for more: many systems begin with 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if 0 <= soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


wsgi_app = "app.web:make()"
bind = [_settings.web_bind]
workers = _settings.web_workers
# Threads, by measurement (bench/waiting_clients.py, two cores): of 1000 clients that waited on one process, each was
# told 4 ms after its task ended at the median and 24 ms at most; with gevent it was 450 ms and 4.7 s. A thread that
# waits costs 70 kB, and is made only when a client comes.
worker_class = DrainingWorker
threads = _settings.web_threads
# Nine times as many may be open without a thread: a proxy's, between two requests, and those that say nothing, which
# have a thread for 5 seconds and then cost a file and no more, until `keepalive`.
worker_connections = max(min(10 * threads, _files() - 200), _FEWEST)
# Above the longest `?wait=`: a restart lets those who wait have their answer.
graceful_timeout = 65
timeout = 90
keepalive = 65
max_requests = 0
# No socket of its own on a read-only file system.
control_socket_disable = True
logconfig_dict = telemetry.config(_settings, "web")
# Whom to believe is TRUSTED_PROXIES (app/web.py); by itself gunicorn believes whoever comes over loopback.
forwarded_allow_ips = ""
proc_name = "darkroom-web"


def child_exit(_: Any, worker: Any) -> None:
    """gunicorn's hook in its master: a web process is gone."""
    metrics.forget(_settings, worker.pid)


def on_exit(_: Any) -> None:
    """gunicorn's hook in its master: all web processes are gone."""
    metrics.clear(_settings)
