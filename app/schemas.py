"""What comes in and goes out over HTTP. The only place where outside input is parsed.

The OpenAPI document is made from these types, so their descriptions are the reference documentation.
"""

import functools
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from app.errors import JOB_CODES, REFUSAL_CODES

MAX_SEED = 2**32 - 1
# Each reader of such an answer holds several times as much of a web process' memory until it is sent.
MAX_INLINE_BYTES = 8_000_000

# C0 controls but tab, newline and carriage return: they are in no prompt that a person wrote, and PNG text
# chunks cannot hold NUL.
Text = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$")]


WebhookEvent = Literal["started", "completed"]
Priority = Literal["normal", "low"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


class GenerateRequest(_Strict):
    """A picture to be made. Only `prompt` is required; the model gives the other defaults and the limits."""

    prompt: Annotated[
        Text, Field(min_length=1, description="What the picture shows; not blank."), AfterValidator(_not_blank)
    ]
    negative_prompt: Annotated[Text, Field(description="What the picture must not show.")] = ""
    model_version: Annotated[str | None, Field(min_length=1, max_length=100, description="One of GET /models.")] = None
    input_image: Annotated[
        bool,
        Field(
            description="Ask for an `upload_url` to PUT an input picture to. It is scaled to the size asked for, and "
            "what is too wide or too high is cut off on both sides alike; so is a mask."
        ),
    ] = False
    input_url: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=1000,
            description="A picture that is here already, by the `input_url` of a task's image.",
        ),
    ] = None
    mask_image: Annotated[
        bool, Field(description="Ask for a `mask_upload_url` too: white is painted anew, black is kept.")
    ] = False
    mask_url: Annotated[
        str | None,
        Field(min_length=1, max_length=1000, description="A mask that is already in this deployment's own bucket."),
    ] = None
    strength: Annotated[float | None, Field(gt=0, le=1, description="How far to leave the input picture.")] = None
    width: Annotated[int | None, Field(ge=8, le=16384, description="Pixels.")] = None
    height: Annotated[int | None, Field(ge=8, le=16384, description="Pixels.")] = None
    num_inference_steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    guidance_scale: Annotated[float | None, Field(ge=0, le=100)] = None
    scheduler: Annotated[
        str | None, Field(min_length=1, max_length=100, description="One of the model's `schedulers`; else its own.")
    ] = None
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED, description="Drawn and told when it is left out.")] = None
    num_images: Annotated[int, Field(ge=1, le=100, description="Made with seed, seed + 1, …")] = 1
    output_format: Literal["png"] = "png"
    priority: Annotated[
        Priority, Field(description="`low` lets every normal task of its queue go first that comes within a day.")
    ] = "normal"
    deadline_seconds: Annotated[int | None, Field(ge=1, le=604_800, description="Give up after this long.")] = None
    webhook_url: Annotated[
        str | None, Field(max_length=2000, description="An https address of yours that is told what happened.")
    ] = None
    webhook_events: Annotated[
        list[WebhookEvent],
        Field(min_length=1, max_length=2, description="What it is told; `completed` is SUCCEEDED and FAILED."),
    ] = ["completed"]
    client_ref: Annotated[Text | None, Field(max_length=200, description="Kept and given back as it is.")] = None

    @model_validator(mode="after")
    def _one_input(self) -> "GenerateRequest":
        if self.input_image and self.input_url:
            raise ValueError("input_image and input_url exclude each other")
        if self.mask_image and self.mask_url:
            raise ValueError("mask_image and mask_url exclude each other")
        if (self.mask_image or self.mask_url) and not (self.input_image or self.input_url):
            raise ValueError("a mask needs an input picture: input_image or input_url")
        return self

    @property
    def capability(self) -> str:
        """What a model must be able to do for this request: txt2img, img2img or inpaint."""
        if self.mask_image or self.mask_url:
            return "inpaint"
        return "img2img" if self.input_image or self.input_url else "txt2img"


class TaskPath(BaseModel):
    task_id: Annotated[str, Field(max_length=100, description="The ticket that POST /generate gave.")]


class ImagePath(TaskPath):
    index: Annotated[int, Field(ge=0, le=100)]


class ModelPath(BaseModel):
    model_version: Annotated[str, Field(max_length=100)]


class _Parameters(BaseModel):
    @classmethod
    def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
        """As pydantic makes it, but once: flask-openapi3 asks for it with each request, a quarter of a GET's time."""
        return super().model_json_schema(*args, **options) if args or options else _schema(cls)


@functools.cache
def _schema(parameters: type[_Parameters]) -> dict[str, Any]:
    return parameters.model_json_schema(by_alias=True)


class _Query(_Parameters):
    model_config = ConfigDict(extra="forbid")


class KeyHeader(_Parameters):
    idempotency_key: Annotated[
        str,
        Field(
            alias="Idempotency-Key",
            description="Your name for this request, at most 200 plain characters: with it, twice is once, for a day.",
        ),
    ] = ""


class EventsHeader(_Parameters):
    last_event_id: Annotated[
        str, Field(alias="Last-Event-ID", description="The event after which a stream broke off that is opened again.")
    ] = ""


class TaskHeader(_Parameters):
    if_none_match: Annotated[
        str, Field(alias="If-None-Match", description="The ETag of an answer that you have: 304 while nothing changed.")
    ] = ""


class TaskQuery(_Query):
    wait: Annotated[
        float,
        Field(ge=0, le=60, allow_inf_nan=False, description="Hold the answer until the task is done, at most so long."),
    ] = 0
    include: Annotated[
        Literal["image"] | None,
        Field(description=f"`image` adds `image_base64`, of a picture of at most {MAX_INLINE_BYTES // 10**6} MB."),
    ] = None


class TaskListQuery(_Query):
    status: Literal["PENDING", "SUCCEEDED", "FAILED"] | None = None
    model_version: Annotated[str | None, Field(max_length=100)] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    cursor: Annotated[str | None, Field(max_length=100, description="`next_cursor` of the page before.")] = None


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Progress(_Answer):
    value: Annotated[float, Field(description="From 0 to 1.")]
    step: int
    steps: int


class TaskError(_Answer):
    """Why a task FAILED: `code` is the word to program against; `message` is for people."""

    code: Annotated[str, Field(json_schema_extra={"enum": list(JOB_CODES)})]
    message: str
    retryable: bool


class Safety(_Answer):
    """What the model's safety checker said; absent for a model without one. `images` says it of each picture."""

    flagged: bool
    images: list[bool]


class Image(_Answer):
    """One finished picture. `bytes` is its size; `url` is signed anew at each read.

    `input_url` is its own address: a further request may name it as the picture to start from.
    """

    index: int
    seed: int
    url: str
    input_url: str
    sha256: str
    bytes: int
    width: int
    height: int


class TaskUrls(_Answer):
    self: str
    cancel: str
    events: str
    image: str
    start: str | None = None


class Delivery(_Answer):
    """One try to tell the webhook. `status` is the receiver's, null with an `error` when there was no answer."""

    event: WebhookEvent
    attempt: int
    at: str
    status: int | None
    error: str | None


class Webhook(_Answer):
    """The task's webhook, its URL without the query; the last deliveries, oldest first."""

    url: str
    events: list[WebhookEvent]
    deliveries: list[Delivery]


def _told(**headers: str) -> ConfigDict:
    """What the answer's headers say, for the OpenAPI document."""
    told = {
        name.replace("_", "-"): {"description": text, "schema": {"type": "string"}} for name, text in headers.items()
    }
    return cast("ConfigDict", {"openapi_extra": {"headers": told}})


_AGAIN = "While the task is PENDING: in how many seconds to look again."
_TAG = "Of GET: for `If-None-Match`. Not while the task waits in a queue, where its place changes without it."
_WHERE = "Where the new task is."
_REPLAYED = "`true` where an earlier request with this Idempotency-Key made the task."


class Task(_Answer):
    """The task document. Times are RFC 3339 in UTC."""

    model_config = _told(
        ETag=_TAG, Retry_After=_AGAIN, Location=f"Of a rerun: {_WHERE}", Idempotency_Replayed=f"Of a rerun: {_REPLAYED}"
    )

    task_id: str
    status: Literal["PENDING", "SUCCEEDED", "FAILED"]
    phase: Literal["AWAITING_UPLOAD", "QUEUED", "STARTING", "RUNNING", "UPLOADING", "DONE"]
    created_at: str | None
    queued_at: str | None
    started_at: str | None
    finished_at: str | None
    expires_at: str | None
    deadline_at: str | None
    queue_position: int | None
    eta_seconds: Annotated[float | None, Field(description="Until it is done, by how long such jobs took lately.")]
    progress: Progress | None
    attempt: int
    max_attempts: int
    attempts: list[dict[str, Any]]
    image_url: str | None
    image_url_expires_at: str | None
    image_base64: str | None = None
    images: list[Image]
    seed: int
    model_version: str
    worker_version: str | None
    params: dict[str, Any]
    metrics: dict[str, int]
    error: TaskError | None
    trace_id: Annotated[str | None, Field(description="Under which traces and logs know it.")]
    safety: Safety | None
    rerun_of: str | None
    client_ref: str | None
    webhook: Webhook | None
    urls: TaskUrls


class WebhookPayload(_Answer):
    """What a webhook is sent: what happened, when, and the task as it is at the time of sending."""

    type: Literal["task.started", "task.completed"]
    timestamp: str
    data: Task


class TaskList(_Answer):
    tasks: list[Task]
    next_cursor: str | None


class Submitted(Task):
    """The answer to POST /generate: the task, and where to PUT the input picture and the mask when asked for.

    Method, headers, time and size are the same for both. `notice` says why the job may wait for long.
    """

    model_config = _told(
        Location=_WHERE,
        Retry_After=_AGAIN,
        Idempotency_Replayed=_REPLAYED,
    )

    notice: str | None = None
    upload_url: str | None
    mask_upload_url: str | None = None
    upload_method: str | None = None
    upload_headers: dict[str, str] | None = None
    upload_expires_at: str | None = None
    upload_max_bytes: int | None = None


class ModelOnWorker(_Answer):
    """One model on one worker: what it cost to load, and which weights these are.

    `process_bytes` is what the worker's process held after loading, of the GPU's memory where it has a GPU.
    A model that is not `resident` is loaded again when a job needs it.
    """

    worker_version: str
    device: str
    load_seconds: float
    weights_bytes: int
    process_bytes: int
    weights_sha256: str
    resident: bool


class Model(_Answer):
    """One model and how it stands now. `available` says whether a worker serves it, `status` why not.

    `without_worker` says whether a request is accepted while the status is `no_worker`, and waits. `typical_seconds` is
    what one picture with the `defaults` takes a worker, by the last pictures that were made; null before the first.
    """

    model_version: str
    default: bool
    capabilities: list[str]
    defaults: dict[str, Any]
    limits: dict[str, Any]
    multiple_of: int
    schedulers: list[str]
    negative_prompt: bool
    safety_checker: bool
    licence: str
    available: bool
    status: Literal["ready", "loading", "failed", "no_worker"]
    without_worker: Literal["accept", "refuse"]
    on_workers: list[ModelOnWorker]
    queue_depth: int
    typical_seconds: float | None


class Models(_Answer):
    models: list[Model]


class Health(_Answer):
    status: Literal["ok"]


class Version(_Answer):
    version: str


class FieldError(_Answer):
    field: str
    reason: str


class Problem(_Answer):
    """RFC 9457. `code` is the word to program against; `detail` is for people."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: Annotated[str, Field(json_schema_extra={"enum": list(REFUSAL_CODES)})]
    trace_id: str | None
    errors: list[FieldError]
