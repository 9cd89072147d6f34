"""Every refusal as a problem document (RFC 9457), whoever made it: our own errors, Flask's, or a fault of ours."""

import uuid
from typing import Any

import structlog
from flask import Flask, Response, g, request
from gunicorn.http.errors import ParseException
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException, NotFound, RequestEntityTooLarge

from app import tracing
from app.errors import HTTP_CODES, InvalidRequest, RequestError, reason
from app.schemas import FieldError, Problem

log = structlog.get_logger("darkroom.web")

RETRY_AFTER = 5

# A refusal is not longer than what it refuses: so many mistakes are named, each with so much of its field's name.
MOST_ERRORS = 20
LONGEST_NAME = 100


def register(app: Flask) -> None:
    """Answer every error of this app with a problem document."""
    app.register_error_handler(RequestError, _refused)
    app.register_error_handler(HTTPException, _http)
    # gunicorn reads a body only when it is asked for, and then finds chunks that are none.
    app.register_error_handler(ParseException, _garbled)
    app.register_error_handler(Exception, _fault)
    app.after_request(_unmet)


def invalid(error: ValidationError) -> Response:
    """The answer to a request that its type does not allow; the rejected values are not repeated."""
    found = error.errors(include_input=False, include_url=False)[:MOST_ERRORS]
    errors = [{"field": ".".join(map(str, e["loc"]))[:LONGEST_NAME] or "body", "reason": reason(e)} for e in found]
    return _refused(InvalidRequest("; ".join(f"{e['field']}: {e['reason']}" for e in errors)[:1000], errors))


def _refused(error: RequestError) -> Response:
    answer = _answer(error.status, error.code, error.title, error.detail, error.errors)
    if error.retryable:
        answer.headers["Retry-After"] = str(error.retry_after or RETRY_AFTER)
    if error.status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def _http(error: HTTPException) -> Response:
    status = error.code or 500
    answer = _answer(status, _code(status), error.name, _detail(error))
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            answer.headers[name] = value
    return answer


def _detail(error: HTTPException) -> str:
    """Where the library has words of its own, they are for people at a browser, and a program asked."""
    if error.description == NotFound.description:
        return "There is nothing here."
    if error.description == RequestEntityTooLarge.description:
        return f"The body is larger than {request.max_content_length} bytes."
    return error.description or ""


def _unmet(response: Response) -> Response:
    """The library answers who asks for another version with what there is."""
    if response.status_code != 412:
        return response
    response.close()
    return _answer(412, _code(412), "Precondition Failed", "What there is now is not what the request asked for.")


def _garbled(_: ParseException) -> Response:
    return _answer(400, "invalid_request", "Bad request", "The body is not what its headers say.")


def of_the_server(status: int, title: str) -> bytes:
    """The document for what is no request that the app could be asked to answer; what was sent is not repeated."""
    detail = "The server cannot read this as a request; it was not looked at any further."
    problem = Problem(
        type="about:blank", title=title, status=status, detail=detail, instance="", code=_code(status),
        trace_id=None, errors=[],
    )  # fmt: skip
    return problem.model_dump_json().encode()


def _code(status: int) -> str:
    return HTTP_CODES.get(status, "invalid_request" if status < 500 else "internal")


def _fault(error: Exception) -> Response:
    log.error("request.failed", method=request.method, route=str(request.url_rule), exc_info=error)
    return _answer(500, "internal", "Internal error", "A fault of ours; the log knows more under this trace_id.")


def _instance() -> str:
    """The path; not that of a signed URL, which opens what it leads to: problems are passed around."""
    return "/files/" if request.path.startswith("/files/") else request.path


def _answer(status: int, code: str, title: str, detail: str, errors: list[dict[str, Any]] | None = None) -> Response:
    told = [FieldError(**e) for e in errors or []]
    trace_id = tracing.trace_id() or g.get("request_id") or uuid.uuid4().hex
    problem = Problem(
        type="about:blank", title=title, status=status, detail=detail, instance=_instance(), code=code,
        trace_id=trace_id, errors=told,
    )  # fmt: skip
    return Response(problem.model_dump_json(), status, mimetype="application/problem+json")
