"""How `amqps://` and `rediss://` servers are known: by a certificate with their name that CA_FILE vouches for."""

import ssl
from typing import Any
from urllib.parse import urlencode, urlsplit

from app.settings import Settings


def redis_url(url: str, settings: Settings) -> str:
    """The URL with what redis-py and Celery must be told about TLS; one without TLS as it is."""
    if not url.startswith("rediss:"):
        return url
    # Celery refuses a URL that leaves this open.
    told = {"ssl_cert_reqs": "required", **({"ssl_ca_certs": settings.ca_file} if settings.ca_file else {})}
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(told)}"


def amqp_options(settings: Settings) -> dict[str, Any]:
    """What Celery takes as `broker_use_ssl`: without the name, py-amqp would take any server's certificate."""
    parts = urlsplit(settings.broker_url)
    if parts.scheme != "amqps":
        return {}
    options = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": parts.hostname}
    return {"broker_use_ssl": {**options, **({"ca_certs": settings.ca_file} if settings.ca_file else {})}}
