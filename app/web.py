"""The web tier: HTTP in, records and messages out. Thin: what a request means is in intake.py and jobs.py."""

import functools
import json
from collections.abc import Iterator
from contextlib import suppress

from flask import Response, redirect, request
from flask_openapi3 import Info, OpenAPI, Tag
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from werkzeug.exceptions import NotFound
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Response as BaseResponse

from app import __version__, admin, http, metrics, problems, telemetry
from app import settings as settings_module
from app.callers import Caller
from app.documents import model_documents, retry_after, submitted_document, task_document
from app.errors import ModelNotFound, NoPicture, NotReady, RateLimited, RequestError, StorageUnavailable, TaskNotFound
from app.files import files
from app.http import answer, caller, responses
from app.intake import Intake, Submission, input_name, mask_name
from app.listing import page
from app.pages import pages
from app.places import ALL, Seat, to_wait
from app.record import Job, Phase, Status, output_name
from app.schemas import (
    EventsHeader,
    GenerateRequest,
    Health,
    ImagePath,
    KeyHeader,
    Model,
    ModelPath,
    Models,
    Problem,
    Submitted,
    Task,
    TaskHeader,
    TaskList,
    TaskListQuery,
    TaskPath,
    TaskQuery,
    Version,
)
from app.services import Services, build
from app.storage import LocalStorage
from app.watch import Event, Watch
from app.webhooks import Outbox

MAX_BODY_BYTES = 64 * 1024
TASKS, MODELS, HEALTH = Tag(name="tasks"), Tag(name="models"), Tag(name="health")


def create_app(services: Services) -> OpenAPI:
    """The WSGI app, on these services. Opens no connection."""
    app = OpenAPI(
        "darkroom",
        info=Info(title="Darkroom", version=__version__, description="Push-and-forget image generation."),
        validation_error_model=Problem,
        validation_error_callback=problems.invalid,
        responses={"default": http.refusal(), 422: http.refusal(422)},
        security_schemes={"bearer": {"type": "http", "scheme": "bearer"}},
        # A deployment without keys asks for none.
        openapi_extensions={"security": [{"bearer": []}, {}]},
        doc_ui=False,
        static_folder=None,
    )
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    if hops := services.settings.trusted_proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=0)  # type: ignore[method-assign]
    # `//` is no page's address, and would be answered with a page of HTML.
    app.url_map.merge_slashes = False
    app.json.sort_keys = False  # type: ignore[attr-defined]
    http.register(app, services.callers, services.settings)
    # Last, so that it sees an answer first.
    problems.register(app)
    desk = Desk(services)
    _orders(app, desk)
    _tickets(app, desk)
    _webhooks(app, desk)
    _pictures(app, desk)
    _models(app, services)
    admin.register(app, services)
    _health(app, services)
    app.add_url_rule("/openapi.json", "openapi", lambda: app.api_doc)
    app.register_blueprint(pages(services.storage))
    if isinstance(services.storage, LocalStorage):
        app.register_blueprint(files(services.storage))
    return app


class Desk:
    """The tasks of the request's caller: another's do not exist for it."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.intake = Intake(services)
        self.watch = Watch(services.redis, services.previews)
        self.places = to_wait(services.settings.web_threads, callers_are_known=not services.callers.are_unknown)
        self.outbox = Outbox(services.redis, timeout=services.settings.webhook_timeout)

    def accept(self, request: GenerateRequest, key: str) -> Response:
        """The ticket for a new task, or for the one that this request made before."""
        submission = self.intake.submit(request, caller(), http.idempotency_key(key))
        upload, mask = submission.upload, submission.mask_upload
        document = submitted_document(
            submission.job, self.services, upload, mask, submission.notice, submission.standing
        )
        return answer(document, 202, **_where(document, submission), **retry_after(document))

    def accept_again(self, task_id: str, key: str) -> Response:
        """The ticket for a new task like this one of the caller's."""
        submission = self.intake.rerun(task_id, caller(), http.idempotency_key(key))
        document = task_document(submission.job, self.services)
        return answer(document, 202, **_where(document, submission), **retry_after(document))

    def own(self, task_id: str) -> Job:
        """The caller's job; raises TaskNotFound, TaskExpired."""
        return self.services.jobs.get(task_id, caller().name)

    def look(self, task_id: str) -> Job:
        """The caller's job as it is now. A look at one that waits for its input sees whether that has come."""
        return self._started(self.own(task_id))

    def refresh(self, job: Job, known: Caller) -> Job:
        """The job as it is now, for the caller whose it is; raises Unauthorized once their key is revoked."""
        self.services.callers.check(known)
        return self._started(self.services.jobs.get(job.task_id))

    def _started(self, job: Job) -> Job:
        # A bucket that is away is asked again by the next look, or by the sweep.
        with suppress(StorageUnavailable):
            if job.phase is Phase.AWAITING_UPLOAD and self.intake.start_if_uploaded(job):
                return self.services.jobs.get(job.task_id)
        return job

    def wait(self, task_id: str, seconds: float) -> Job:
        """The caller's job as soon as it is done, or as it is after `seconds`."""
        job = self.look(task_id)
        if not seconds or job.phase.is_terminal:
            return job
        known = caller()
        with self.places.taken(*_seats()) as free:
            # Who finds no place asks again, as after any wait.
            read = functools.partial(self.refresh, job, known)
            return self.watch.wait(task_id, read, seconds, http.client_is_gone) if free else job

    def answer(self, job: Job, status: int = 200, *, inline: bool = False) -> Response:
        """The task document."""
        document = task_document(job, self.services, inline=inline)
        response = answer(document, status, **retry_after(document))
        tag = self._tag(job) if status == 200 else ""
        # A picture that was not there may be again.
        return http.tagged(response, f"{tag}-{bool(document.image_base64):d}") if tag else response

    def _tag(self, job: Job) -> str:
        """Changes with what the document tells of the job; empty while that is in a line, which moves without it."""
        # In time before the picture's URL is over.
        spell = self.services.clock() // (self.services.settings.signed_url_ttl / 2) if job.images else 0
        return "" if job.phase is Phase.QUEUED else f"{job.task_id}-{job.version}-{spell:.0f}"

    def picture(self, task_id: str, index: int) -> BaseResponse:
        """A redirect to one of the pictures."""
        job, storage = self.own(task_id), self.services.storage
        if job.status is Status.PENDING:
            raise NotReady("The task is not done.")
        if job.status is Status.FAILED:
            raise NoPicture("The task has failed and has no picture; its `error` says why.")
        if index >= len(job.images):
            raise TaskNotFound(f"The task has {len(job.images)} pictures, counted from 0.")
        return redirect(storage.download_url(job.images[index]["name"], self.services.settings.signed_url_ttl))

    def cancel(self, task_id: str) -> Job:
        """The caller's job, ended or asked to."""
        self.services.jobs.cancel(self.own(task_id).task_id)
        return self.services.jobs.get(task_id)

    def delete(self, task_id: str) -> None:
        """Remove the objects, then the record: who is told 503 may ask again. Raises NotReady before the end."""
        job = self.own(task_id)
        if not job.phase.is_terminal:
            raise NotReady("The task is not done; cancel it first.")
        # Also those of a job that failed between two of them.
        outputs = [output_name(task_id, index) for index in range(job.params.num_images)]
        for name in [*outputs, input_name(task_id), mask_name(task_id)]:
            self.services.storage.delete(name)
        self.services.jobs.delete(task_id)

    def events(self, task_id: str, seen: int | None) -> Response:
        """Server-sent events of the caller's task; raises RateLimited when too many follow already."""
        job = self.look(task_id)
        seats = _seats()
        if not self.places.take(*seats):
            raise RateLimited("As many clients wait for their tasks as may at once.", retry_after=5)
        stream = self._events(job, seen, caller())
        response = Response(stream, mimetype="text/event-stream", headers={"X-Accel-Buffering": "no"})
        # Also where the stream was never begun.
        response.call_on_close(lambda: self.places.leave(*seats))
        return response

    def _events(self, job: Job, seen: int | None, known: Caller) -> Iterator[str]:
        """From the job as it is, or from what comes after version `seen`, to its end or to what refuses to go on.

        Whoever asks again is told that refusal: that the key was revoked, say, or that the store is away.
        """
        with suppress(RequestError):
            for event in self.watch.follow(job.task_id, functools.partial(self.refresh, job, known), seen):
                self.services.callers.check(known)
                yield self._event(event)

    def _event(self, event: Event) -> str:
        if event.kind == "alive":
            return ": alive\n\n"
        data = task_document(event.job, self.services).model_dump() if event.job else event.data
        return f"id: {event.version}\nevent: {event.kind}\ndata: {json.dumps(data)}\n\n"


def _seats() -> tuple[Seat, ...]:
    """What the request's caller takes while it waits."""
    return ALL, ("caller", caller().name)


def _where(document: Task, submission: Submission) -> dict[str, str]:
    """Headers that tell of an accepted task where it is, and whether an earlier request made it."""
    replayed = {"Idempotency_Replayed": "true"} if submission.replayed else {}
    return {"Location": document.urls.self, **replayed}


def _orders(app: OpenAPI, desk: Desk) -> None:
    @app.post("/generate", tags=[TASKS], responses=responses({202: Submitted}, 400, 409, 410, 413, 415, 503))
    def generate(header: KeyHeader, body: GenerateRequest) -> Response:
        """Accept a picture to be made, and give a ticket for it."""
        return desk.accept(body, header.idempotency_key)

    @app.post("/tasks/<string:task_id>/start", tags=[TASKS], responses=responses({202: Task}, 404, 409, 410, 503))
    def start(path: TaskPath) -> Response:
        """The input picture is uploaded: queue the task. Saying so again does nothing."""
        return desk.answer(desk.intake.start(desk.own(path.task_id)), 202)

    @app.post("/tasks/<string:task_id>/rerun", tags=[TASKS], responses=responses({202: Task}, 400, 404, 409, 410, 503))
    def rerun(header: KeyHeader, path: TaskPath) -> Response:
        """The same parameters and seed once more, as a new task."""
        return desk.accept_again(path.task_id, header.idempotency_key)


def _tickets(app: OpenAPI, desk: Desk) -> None:
    @app.get("/tasks", tags=[TASKS], responses=responses({200: TaskList}, 503))
    def tasks(query: TaskListQuery) -> Response:
        """The caller's own tasks, newest first."""
        return answer(page(desk.services, caller().name, query))

    @app.get("/tasks/<string:task_id>", tags=[TASKS], responses=responses({200: Task, 304: None}, 404, 410, 503))
    def task(header: TaskHeader, path: TaskPath, query: TaskQuery) -> Response:  # noqa: ARG001, http.tagged heeds it
        """The task as it is, or as soon as it is done within `wait` seconds."""
        return desk.answer(desk.wait(path.task_id, query.wait), inline=query.include == "image")

    @app.get("/tasks/<string:task_id>/events", tags=[TASKS], responses=responses({200: http.STREAM}, 404, 410, 503))
    def events(header: EventsHeader, path: TaskPath) -> Response:
        """Server-sent events: the task as it is, then `status`, `progress` and `preview`, until it is done.

        With `Last-Event-ID` the first is left out when nothing has changed since that event, unless the task is done.
        """
        return desk.events(path.task_id, http.last_event_id(header.last_event_id))

    @app.post("/tasks/<string:task_id>/cancel", tags=[TASKS], responses=responses({200: Task}, 404, 410, 503))
    def cancel(path: TaskPath) -> Response:
        """End a queued task at once, a running one at its next step. A finished one stays as it is."""
        return desk.answer(desk.cancel(path.task_id))

    @app.delete("/tasks/<string:task_id>", tags=[TASKS], responses=responses({204: None}, 404, 409, 410, 503))
    def delete(path: TaskPath) -> Response:
        """Remove a finished task and its pictures. A task that was to start from one of them fails."""
        desk.delete(path.task_id)
        return Response(status=204)


def _webhooks(app: OpenAPI, desk: Desk) -> None:
    @app.post(
        "/tasks/<string:task_id>/webhook/redeliver",
        tags=[TASKS],
        responses=responses({202: Task}, 404, 409, 410, 503),
    )
    def redeliver(path: TaskPath) -> Response:
        """Tell the webhook once more what it asked for and what has happened, with as many tries as the first time."""
        job = desk.own(path.task_id)
        desk.outbox.redeliver(job)
        return desk.answer(job, 202)


def _pictures(app: OpenAPI, desk: Desk) -> None:
    @app.get("/tasks/<string:task_id>/image", tags=[TASKS], responses=responses({302: None}, 404, 409, 410, 503))
    def image(path: TaskPath) -> BaseResponse:
        """A redirect to the picture."""
        return desk.picture(path.task_id, 0)

    @app.get(
        "/tasks/<string:task_id>/images/<int:index>",
        tags=[TASKS],
        responses=responses({302: None}, 404, 409, 410, 503),
    )
    def images(path: ImagePath) -> BaseResponse:
        """A redirect to one of several pictures."""
        return desk.picture(path.task_id, path.index)


def _models(app: OpenAPI, services: Services) -> None:
    @app.get("/models", tags=[MODELS], responses=responses({200: Models}, 503))
    def models() -> Response:
        """Every model that this deployment offers, the default first."""
        return answer(Models(models=model_documents(services)))

    @app.get("/models/<string:model_version>", tags=[MODELS], responses=responses({200: Model}, 404, 503))
    def model(path: ModelPath) -> Response:
        """One model."""
        found = [m for m in model_documents(services) if m.model_version == path.model_version]
        if not found:
            raise ModelNotFound(f"There is no model {path.model_version}.")
        return answer(found[0])


def _health(app: OpenAPI, services: Services) -> None:
    @app.get("/healthz", tags=[HEALTH], responses={200: Health})
    def healthz() -> Response:
        """This process is alive."""
        return answer(Health(status="ok"))

    @app.get("/readyz", tags=[HEALTH], responses={200: Health, 503: http.refusal(503)})
    def readyz() -> Response:
        """This process reaches the status store and the broker."""
        services.jobs.ping()
        services.check_broker()
        return answer(Health(status="ok"))

    @app.get("/version", tags=[HEALTH], responses={200: Version})
    def version() -> Response:
        """Which Darkroom this is."""
        return answer(Version(version=__version__))

    plain = {"content": {"text/plain": {}}, "description": "Prometheus."}

    @app.get("/metrics", tags=[HEALTH], responses={200: plain, 404: http.refusal(404)})
    def numbers() -> Response:
        """What all web processes have counted; for who asks beside a proxy, and for nobody who comes through one."""
        # Here, and not in each kind of ingress: all write this header; Prometheus, who is beside them, does not.
        if "X-Forwarded-For" in request.headers:
            raise NotFound
        told = generate_latest(metrics.registry(services.settings))
        return Response(told, content_type=CONTENT_TYPE_LATEST)


def make() -> OpenAPI:
    """What gunicorn calls once in each web process."""
    settings = settings_module.load()
    telemetry.setup(settings, "web")
    metrics.begin("web")
    return create_app(build(settings, "web"))
