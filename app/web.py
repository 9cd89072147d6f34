"""The web tier: HTTP in, records and messages out. Thin: what a request means is in intake.py and jobs.py."""

import re
import time
import uuid
from importlib import resources
from typing import Any

import structlog
from flask import Blueprint, Response, g, redirect, render_template_string, request
from flask_openapi3 import Info, OpenAPI, Tag
from werkzeug.wrappers import Response as BaseResponse

from app import __version__, problems, telemetry
from app import settings as settings_module
from app.documents import model_documents, submitted_document, task_document
from app.errors import BadRequest, ModelNotFound, NotReady, TaskNotFound
from app.files import files
from app.intake import Intake
from app.jobs import Job, Phase, Status
from app.schemas import (
    GenerateRequest,
    Health,
    ImagePath,
    Model,
    ModelPath,
    Models,
    Problem,
    Submitted,
    Task,
    TaskPath,
    TaskQuery,
    Version,
)
from app.services import Services, build
from app.storage import LocalStorage
from app.watch import Watch

log = structlog.get_logger("darkroom.web")

MAX_BODY_BYTES = 64 * 1024
TASKS, MODELS, HEALTH = Tag(name="tasks"), Tag(name="models"), Tag(name="health")

_PROBLEM = {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}


def create_app(services: Services) -> OpenAPI:
    """The WSGI app, on these services. Opens no connection."""
    app = OpenAPI(
        "darkroom",
        info=Info(title="Darkroom", version=__version__, description="Push-and-forget image generation."),
        validation_error_model=Problem,
        validation_error_callback=problems.invalid,
        responses={"default": {"description": "A problem document (RFC 9457).", **_PROBLEM}, 422: _refusal(422)},
        security_schemes={},
        doc_ui=False,
        static_folder=None,
    )
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]
    problems.register(app)
    app.before_request(_identify)
    app.before_request(_parse)
    app.after_request(_label)
    _tasks(app, services)
    _models(app, services)
    _health(app, services)
    _documentation(app)
    if isinstance(services.storage, LocalStorage):
        app.register_blueprint(files(services.storage))
    return app


def _refusal(status: int) -> dict[str, Any]:
    return {"description": f"A problem document with status {status}.", **_PROBLEM}


def _responses(success: dict[int, Any], *refusals: int) -> Any:
    return {**success, **{status: _refusal(status) for status in refusals}}


def _identify() -> None:
    """Give the request an id: the client's own when it is a plain one."""
    g.started = time.monotonic()
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else uuid.uuid4().hex
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _parse() -> None:
    """What is not a JSON object is refused as such, before its fields are looked at."""
    if request.endpoint == "generate" and request.method == "POST":
        try:
            body = request.get_json()
        except RecursionError:
            raise BadRequest("The body is nested too deeply.") from None
        # A text would be parsed once more.
        if not isinstance(body, dict):
            raise BadRequest("The body is no JSON object.")


def _label(response: Response) -> Response:
    # The route, not the path: paths carry signed tokens.
    milliseconds = round(1000 * (time.monotonic() - g.started), 1) if "started" in g else None
    log.info(
        "request", method=request.method, route=str(request.url_rule), status=response.status_code, ms=milliseconds
    )
    response.headers["X-Request-ID"] = g.get("request_id", "")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def _answer(document: Any, status: int = 200, **headers: str) -> Response:
    response = Response(document.model_dump_json(), status, mimetype="application/json")
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return response


def _task_answer(job: Job, services: Services, *, status: int = 200, inline: bool = False) -> Response:
    headers = {} if job.phase.is_terminal else {"Retry_After": "1"}
    return _answer(task_document(job, services, inline=inline), status, **headers)


def _tasks(app: OpenAPI, services: Services) -> None:
    intake, watch = Intake(services), Watch(services.redis)

    def read(task_id: str) -> Job:
        """The job as it is now. A look at one that waits for its input sees whether that has come."""
        job = services.jobs.get(task_id)
        waits = job.phase is Phase.AWAITING_UPLOAD
        return services.jobs.get(task_id) if waits and intake.start_if_uploaded(job) else job

    @app.post("/generate", tags=[TASKS], responses=_responses({202: Submitted}, 400, 413, 415, 503))
    def generate(body: GenerateRequest) -> Response:
        """Accept a picture to be made, and give a ticket for it."""
        job, upload = intake.submit(body)
        document = submitted_document(job, services, upload)
        return _answer(document, 202, Location=f"/tasks/{job.task_id}", Retry_After="1")

    @app.post("/tasks/<string:task_id>/start", tags=[TASKS], responses=_responses({202: Task}, 404, 409, 410, 503))
    def start(path: TaskPath) -> Response:
        """The input picture is uploaded: queue the task. Saying so again does nothing."""
        return _task_answer(intake.start(services.jobs.get(path.task_id)), services, status=202)

    @app.get("/tasks/<string:task_id>", tags=[TASKS], responses=_responses({200: Task}, 404, 410, 503))
    def task(path: TaskPath, query: TaskQuery) -> Response:
        """The task as it is, or as soon as it is done within `wait` seconds."""
        job = watch.wait(lambda: read(path.task_id), query.wait) if query.wait else read(path.task_id)
        return _task_answer(job, services, inline=query.include == "image")

    @app.get("/tasks/<string:task_id>/image", tags=[TASKS], responses=_responses({302: None}, 404, 409, 410, 503))
    def image(path: TaskPath) -> BaseResponse:
        """A redirect to the picture."""
        return _picture(services, path.task_id, 0)

    @app.get(
        "/tasks/<string:task_id>/images/<int:index>",
        tags=[TASKS],
        responses=_responses({302: None}, 404, 409, 410, 503),
    )
    def images(path: ImagePath) -> BaseResponse:
        """A redirect to one of several pictures."""
        return _picture(services, path.task_id, path.index)


def _picture(services: Services, task_id: str, index: int) -> BaseResponse:
    job = services.jobs.get(task_id)
    if job.status is not Status.SUCCEEDED:
        raise NotReady("The task has no picture." if job.phase.is_terminal else "The task is not done.")
    if index >= len(job.images):
        raise TaskNotFound(f"The task has {len(job.images)} pictures, counted from 0.")
    return redirect(services.storage.download_url(job.images[index]["name"], services.settings.signed_url_ttl))


def _models(app: OpenAPI, services: Services) -> None:
    @app.get("/models", tags=[MODELS], responses=_responses({200: Models}, 503))
    def models() -> Response:
        """Every model that this deployment offers, the default first."""
        return _answer(Models(models=model_documents(services)))

    @app.get("/models/<string:model_version>", tags=[MODELS], responses=_responses({200: Model}, 404, 503))
    def model(path: ModelPath) -> Response:
        """One model."""
        found = [m for m in model_documents(services) if m.model_version == path.model_version]
        if not found:
            raise ModelNotFound(f"There is no model {path.model_version}.")
        return _answer(found[0])


def _health(app: OpenAPI, services: Services) -> None:
    @app.get("/healthz", tags=[HEALTH], responses={200: Health})
    def healthz() -> Response:
        """This process is alive."""
        return _answer(Health(status="ok"))

    @app.get("/readyz", tags=[HEALTH], responses=_responses({200: Health}, 503))
    def readyz() -> Response:
        """This process reaches the status store and the broker."""
        services.jobs.ping()
        services.check_broker()
        return _answer(Health(status="ok"))

    @app.get("/version", tags=[HEALTH], responses={200: Version})
    def version() -> Response:
        """Which Darkroom this is."""
        return _answer(Version(version=__version__))


_DOCS_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Darkroom API</title>
<link rel="stylesheet" href="{{ url_for('swagger.static', filename='css/swagger-ui.css') }}">
<div id="swagger-ui" data-url="/openapi.json"></div>
<script src="{{ url_for('swagger.static', filename='js/swagger-ui-bundle.js') }}"></script>
<script src="/docs/start.js"></script></html>"""
_DOCS_SCRIPT = "SwaggerUIBundle({url: '/openapi.json', dom_id: '#swagger-ui', deepLinking: true});"


def _documentation(app: OpenAPI) -> None:
    folder = resources.files("flask_openapi3_swagger") / "templates" / "swagger"
    app.register_blueprint(Blueprint("swagger", __name__, static_folder=str(folder), static_url_path="/docs/static"))
    app.add_url_rule("/openapi.json", "openapi", lambda: app.api_doc)
    app.add_url_rule("/", "home", lambda: redirect("/docs"))
    app.add_url_rule("/docs", "docs", lambda: render_template_string(_DOCS_PAGE))
    app.add_url_rule("/docs/start.js", "docs_start", lambda: Response(_DOCS_SCRIPT, mimetype="text/javascript"))


def make() -> OpenAPI:
    """What gunicorn calls once in each web process."""
    settings = settings_module.load()
    telemetry.setup(settings, "web")
    return create_app(build(settings, "web"))
