"""`darkroom doctor`: the settings and each connection, one line each, with what to do about what fails.

What a client needs is always looked at. What a role of the service needs is looked at where its settings are.
"""

import secrets
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from app import console
from app import settings as settings_module
from app.client import Client
from app.commands import client_of_environment
from app.console import DONE, REFUSED, Output, answers
from app.errors import ApiError, DarkroomError, StorageUnavailable
from app.settings import Settings

# What the service's checks need is imported by them: other commands would wait for it.
if TYPE_CHECKING:
    from app.storage import Storage


@dataclass(frozen=True)
class Finding:
    """What one check found; `advice` says what to do about a failure."""

    name: str
    ok: bool
    detail: str
    advice: str = ""


@click.command()
@click.option(
    "--role",
    type=click.Choice(["web", "worker", "courier"]),
    default="web",
    show_default=True,
    help="Whose rights in the picture store this account must have.",
)
@answers
def doctor(output: Output, role: str) -> int:
    """Check settings and connections. The exit status is 1 when one of them fails."""
    findings = [*_of_the_client(), *_of_the_service(role)]
    for finding in findings if not output.as_json else []:
        click.echo(_line(finding))
    if output.as_json:
        output.result({"checks": [asdict(finding) for finding in findings]})
    return DONE if all(finding.ok for finding in findings) else REFUSED


def _line(finding: Finding) -> str:
    advice = f" -> {finding.advice}" if finding.advice else ""
    return f"{'ok' if finding.ok else 'failed':7} {finding.name:10} {finding.detail}{advice}"


def _check(name: str, look: Callable[[], str], advice: str = "") -> Finding:
    """Run one check; it gives what it saw, or raises DarkroomError."""
    try:
        return Finding(name, ok=True, detail=look())
    except DarkroomError as error:
        # The cause says more than a client may be told: which address, which refusal.
        cause = f" ({error.__cause__})" if error.__cause__ and not isinstance(error, ApiError) else ""
        detail = f"{error}{cause}".replace("\n", "; ")
        return Finding(name, ok=False, detail=detail, advice=advice or console.advice(error).strip())


def _of_the_client() -> list[Finding]:
    try:
        client, url = client_of_environment(), settings_module.load_client().url
    except DarkroomError as error:
        return [Finding("client", ok=False, detail=str(error).replace("\n", "; "), advice="correct the environment")]
    web = _check("web", lambda: _version(client, url), "start it (script/server), or set DARKROOM_URL")
    if not web.ok:
        return [web]
    return [
        web,
        _check("ready", lambda: _readiness(client), "look at Redis and the broker of that deployment"),
        _check("models", lambda: _models(client)),
    ]


def _version(client: Client, url: str) -> str:
    began = monotonic()
    return f"{url} is Darkroom {client.version()}, {1000 * (monotonic() - began):.0f} ms away"


def _readiness(client: Client) -> str:
    if not client.ready():
        raise DarkroomError("the web tier does not reach its status store or its broker")
    return "the web tier reaches its status store and its broker"


def _models(client: Client) -> str:
    found = client.models()
    served = [model["model_version"] for model in found if model["available"]]
    if not served:
        raise DarkroomError(f"no worker serves any of the {len(found)} models: start `python -m app worker`")
    return f"served now: {', '.join(served)}"


def _of_the_service(role: str) -> list[Finding]:
    # Else it is script/server that fills them in, and one of the others alone says nothing of a service.
    if not settings_module.given() & {"broker_url", "redis_url", "storage_url"}:
        return []
    try:
        settings = settings_module.load()
    except DarkroomError as error:
        return [Finding("settings", ok=False, detail=str(error).replace("\n", "; "), advice="see config/README.md")]
    catalogue = _check("catalogue", lambda: _catalogue(settings), "correct that, or name another by MODELS_FILE")
    return [
        Finding("settings", ok=True, detail=f"{len(settings_module.given())} set, none wrong"),
        _check("redis", lambda: redis(settings), "start it, or correct REDIS_URL"),
        # Its queues are the catalogue's.
        *([_check("broker", lambda: broker(settings), "start it, or correct BROKER_URL")] if catalogue.ok else []),
        _check("storage", lambda: storage(settings, role), "correct STORAGE_URL, or this account's rights"),
        catalogue,
    ]


def redis(settings: Settings) -> str:
    """What is there; raises DarkroomError when it does not answer."""
    from redis.exceptions import RedisError

    from app.services import make_redis

    try:
        with make_redis(settings, "web") as store:
            store.ping()
    except (RedisError, OSError) as error:
        raise DarkroomError(str(error)) from None
    return f"{_plain(settings.redis_url)} answers"


def broker(settings: Settings) -> str:
    """The same, of the broker."""
    from app.services import build

    services = build(settings, "courier")
    try:
        services.check_broker()
    finally:
        services.redis.close()
    return f"{_plain(settings.broker_url)} answers"


def storage(settings: Settings, role: str) -> str:
    """What a role does there, tried; raises DarkroomError for what this account may not."""
    from app.storage import make_storage

    store = make_storage(settings)
    # Beside the pictures, under a name that no task has.
    name = f"output/doctor-{secrets.token_hex(8)}.png"
    # That it is not there is told to whoever may list, and to nobody else.
    store.size(name)
    if role == "courier":
        store.delete(name)
    else:
        _write_and_read(store, name, role)
    if role != "worker":
        store.download_url(name, 60)
    return f"{settings.storage_url} lets the {role} role do its work"


def _write_and_read(store: "Storage", name: str, role: str) -> None:
    data = secrets.token_bytes(1000)
    try:
        store.put(name, data, "image/png")
        if store.get(name, len(data)) != data:
            raise DarkroomError(f"{name} was not read as it was written")
    finally:
        # A worker may delete nothing: what it leaves goes with RESULT_TTL.
        with suppress(StorageUnavailable) if role == "worker" else nullcontext():
            store.delete(name)
    if role != "worker" and store.size(name) is not None:
        raise DarkroomError(f"{name} is still there after its deletion")


def _catalogue(settings: Settings) -> str:
    from app.models import load_catalogue

    models = load_catalogue(settings.models_file, settings.default_model_version)
    return f"{settings.models_file}: {', '.join(spec.model_version for spec in models.all())}"


def _plain(url: str) -> str:
    """The address without the password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
