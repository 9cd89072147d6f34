"""What every request and answer of the web tier has in common: its id, its caller, its log line, its headers."""

import re
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import flask
import structlog
import werkzeug.exceptions
from flask import Flask, Response, g, request

from app import metrics, tracing
from app.callers import Caller, Callers
from app.errors import BadRequest, Forbidden
from app.settings import Settings

log = structlog.get_logger("darkroom.web")

_PROBLEM = {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}

_WORD = {"type": "string"}
STREAM = {
    "description": "Server-sent events; `data` is JSON: a `status` has the task, a `progress` its `step` and `steps`, "
    "a `preview` the picture so far, a JPEG in base64, as `preview`. Lines that begin with a colon say nothing.",
    "content": {
        "text/event-stream": {
            "schema": {
                "type": "object",
                "properties": {
                    "id": _WORD,
                    "event": {"enum": ["status", "progress", "preview"]},
                    "data": {**_WORD, "contentMediaType": "application/json"},
                },
                "required": ["id", "event", "data"],
            }
        }
    },
}

# Whoever asks must be known, but for what says nothing about anyone's tasks.
OPEN_ENDPOINTS = {
    "healthz",
    "readyz",
    "numbers",
    "version",
    "openapi",
    "page.home",
    "page.docs",
    "page.static",
    "page.swagger.static",
}
# Others are told as one: a client could make up any number of them.
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"}
SIGNED_ENDPOINTS = {"files.download", "files.upload"}

# For answers that are no page: opened by themselves, a stranger's picture among them, they run and load nothing.
INERT = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"


class Request(flask.Request):
    """Knows its connection too, where gunicorn tells it."""

    def __init__(self, environ: dict[str, Any], *args: Any, **options: Any) -> None:
        super().__init__(environ, *args, **options)
        self.connection: socket.socket | None = environ.get("gunicorn.socket")


def register(app: Flask, callers: Callers, settings: Settings) -> None:
    """Hang the common parts on the app."""
    app.request_class = Request
    tracing.instrument(app)
    app.before_request(_identify)
    if callers.are_unknown:
        app.before_request(_name_checker(settings))
        app.before_request(_refuse_other_sites)
    app.before_request(_authenticator(callers))
    app.before_request(_heed_if_match)
    app.before_request(_parse)
    app.after_request(_label)
    # The thread's next request may fail before it has an id of its own.
    app.teardown_request(lambda _: structlog.contextvars.clear_contextvars())


def refusal(status: int | None = None) -> dict[str, Any]:
    """A refusal, for the OpenAPI document; without a status, all that are not named."""
    return {
        "description": f"A problem document with {f'status {status}' if status else 'any other status'}.",
        **_PROBLEM,
    }


def responses(success: dict[int, Any], *refusals: int) -> Any:
    """What an operation may answer, for the OpenAPI document; everyone may be refused for who they are."""
    return {**success, **{status: refusal(status) for status in (401, 429, *refusals)}}


def answer(document: Any, status: int = 200, **headers: str) -> Response:
    """A pydantic document as JSON; `Retry_After` is written `Retry-After`."""
    response = Response(document.model_dump_json(), status, mimetype="application/json")
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return response


def tagged(response: Response, tag: str) -> Response:
    """With this ETag, and 304 for who has that one."""
    response.set_etag(tag, weak=True)
    # If-Match holds, or we would not be here (`_heed_if_match`); Werkzeug would compare even `*` with the weak tag.
    asked = {name: value for name, value in request.environ.items() if name != "HTTP_IF_MATCH"}
    return response.make_conditional(asked)  # type: ignore[return-value]


def caller() -> Caller:
    """Who makes this request."""
    known: Caller = g.caller
    return known


def idempotency_key(key: str) -> str:
    """The client's name for this request, empty for none; raises BadRequest."""
    if not re.fullmatch("[ -~]{0,200}", key):
        raise BadRequest("The Idempotency-Key must have at most 200 characters, all plain ones.")
    return key


def client_is_gone() -> bool:
    """Whether nobody is there to be answered any more."""
    connection = cast("Request", request).connection
    if connection is None:
        return False
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def last_event_id(given: str) -> int | None:
    """The event after which a stream broke off that is opened again; None for a new one, or a word that is not ours."""
    return int(given) if re.fullmatch("[0-9]{1,15}", given) else None


def _identify() -> None:
    """Give the request an id, the client's own when it is a plain one; and the log the task's, if it may be one."""
    g.started = time.monotonic()
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else uuid.uuid4().hex
    structlog.contextvars.clear_contextvars()
    task_id = (request.view_args or {}).get("task_id", "")
    named = {"task_id": task_id} if re.fullmatch("[0-9a-f-]{36}", task_id) else {}
    structlog.contextvars.bind_contextvars(request_id=g.request_id, **named)


def _name_checker(settings: Settings) -> Callable[[], None]:
    def check_name() -> None:
        # Werkzeug has seen that it is well made, but for brackets; its own list of names holds no IPv6 address.
        try:
            name = urlsplit(f"//{request.host}").hostname or ""
        except ValueError:
            name = request.host
        if not settings.is_ours(name):
            raise werkzeug.exceptions.SecurityError(f"Host {name!r} is not trusted.")

    return check_name


def _refuse_other_sites() -> None:
    """Who needs no key is let in for where they are: a browser there must not act for a page from elsewhere."""
    changes = request.method not in ("GET", "HEAD", "OPTIONS") and request.endpoint not in SIGNED_ENDPOINTS
    if changes and _is_from_another_site():
        raise Forbidden("Another site's page may not do this.")


def _is_from_another_site() -> bool:
    """By the browser's own word, or by the Origin of one that does not give it; other programs say neither."""
    if site := request.headers.get("Sec-Fetch-Site"):
        return site not in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.host


def _authenticator(callers: Callers) -> Callable[[], None]:
    def authenticate() -> None:
        if request.endpoint not in OPEN_ENDPOINTS | SIGNED_ENDPOINTS and request.endpoint is not None:
            g.caller = callers.identify(request.headers.get("Authorization", ""))

    return authenticate


def _heed_if_match() -> None:
    """RFC 9110 13.1.1: only a strong tag can match, and no document here has one; `*` holds wherever there is one.

    Files have, and are compared where they are sent; nothing is asked of what is not there.
    """
    endpoint = request.endpoint
    if endpoint is None or endpoint in SIGNED_ENDPOINTS or endpoint.endswith(".static"):
        return
    if request.headers.get("If-Match", "*").strip() != "*":
        raise werkzeug.exceptions.PreconditionFailed


def _parse() -> None:
    """What is not a JSON object is refused as such, before its fields are looked at."""
    if request.endpoint == "generate" and request.method == "POST":
        if not request.is_json:
            raise werkzeug.exceptions.UnsupportedMediaType("The body must be JSON: `Content-Type: application/json`.")
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise werkzeug.exceptions.UnsupportedMediaType("The body must be sent as it is, without Content-Encoding.")
        _read_whole()
        try:
            body = request.get_json()
        except RecursionError:
            raise BadRequest("The body is nested too deeply.") from None
        except werkzeug.exceptions.BadRequest:
            raise BadRequest("The body is no JSON.") from None
        # A text would be parsed once more.
        if not isinstance(body, dict):
            raise BadRequest("The body is no JSON object.")


def _read_whole() -> None:
    """A body that does not tell its length would be cut at the limit, and what is before that taken for all of it."""
    if request.content_length is None and (most := request.max_content_length):
        request.max_content_length = most + 1
        if len(request.get_data()) > most:
            raise werkzeug.exceptions.RequestEntityTooLarge


def _label(response: Response) -> Response:
    seconds = time.monotonic() - g.get("started", time.monotonic())
    # The route, not the path: paths carry signed tokens, and are without number.
    route = request.url_rule.rule if request.url_rule else ""
    method = request.method if request.method in _METHODS else "_OTHER"
    tracing.name_request(method, route)
    metrics.HTTP_REQUEST.labels(method, route, response.status_code).observe(seconds)
    log.info("request", method=method, route=route, status=response.status_code, ms=round(1000 * seconds, 1))
    response.headers["X-Request-ID"] = g.get("request_id", "")
    if parent := tracing.traceparent():
        response.headers["traceparent"] = parent
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.setdefault("Content-Security-Policy", INERT)
    return response
