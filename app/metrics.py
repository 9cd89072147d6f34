"""Every number that Darkroom tells Prometheus, declared once: name, unit, help, and why these buckets.

Each role has several processes, or processes that are replaced, so prometheus_client keeps the values in files, one
set a process (`PROMETHEUS_MULTIPROC_DIR`, which cli.py sets for the role), and whoever is asked adds them up.
What must outlive every process is kept in Redis and told by the courier (census.py).
"""

from contextlib import suppress
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from app import __version__, tallies
from app.errors import SettingsError
from app.settings import Settings

# From a tiny model on an idle worker to an hour in the line; 60 and 300 are the bounds of our objectives.
_JOB_SECONDS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)

# From a file on this machine to a large model over many steps.
_PHASE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

# From a toy on a CPU to a large picture on a small GPU.
_STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# From the page cache to gigabytes over the network; at 900 the pool gives a child up.
_LOAD_SECONDS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)

# What OpenTelemetry's conventions advise for HTTP, and 30 and 60 for those who wait with `?wait=`.
_HTTP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60)

# A receiver has ten seconds by default, and sixty at most.
_WEBHOOK_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

BUILD = Gauge(
    "darkroom_build_info", "1 for the running version of a role.", ["role", "version"], multiprocess_mode="max"
)

# ---- The web tier. The name and the labels are those of OpenTelemetry's `http.server.request.duration`.
HTTP_REQUEST = Histogram(
    "http_server_request_duration_seconds",
    "Requests by route, from the first byte to the head of the answer; with `?wait=` that is the waiting too.",
    ["http_request_method", "http_route", "http_response_status_code"],
    buckets=_HTTP_SECONDS,
)
WAITING_CLIENTS = Gauge(
    "darkroom_waiting_clients",
    "Clients that wait for a task now, by `?wait=` or by events.",
    multiprocess_mode="livesum",
)
JOBS_SUBMITTED = Counter("darkroom_jobs_submitted_total", "Jobs accepted.", ["model_version"])

# ---- The worker
ATTEMPTS = Counter("darkroom_job_attempts_total", "Claims of a job, the first one included.", ["model_version"])
QUEUE_WAIT = Histogram(
    "darkroom_job_queue_wait_seconds",
    "From the queue, for the last time, to the claim of a worker.",
    ["model_version"],
    buckets=_JOB_SECONDS,
)
JOB = Histogram(
    "darkroom_job_duration_seconds",
    "Time to the result: of a job that SUCCEEDED, from its acceptance (with an input, from its queueing) to its end.",
    ["model_version"],
    buckets=_JOB_SECONDS,
)
PHASE = Histogram(
    "darkroom_job_phase_duration_seconds",
    "Parts of a job's work: `load` (its input, and its model where that is not in memory), `inference`, `upload`.",
    ["model_version", "phase"],
    buckets=_PHASE_SECONDS,
)
STEP = Histogram(
    "darkroom_inference_step_duration_seconds",
    "One step of a model; the first one of a job includes the encoding of its prompt.",
    ["model_version"],
    buckets=_STEP_SECONDS,
)
MODEL_LOAD = Histogram(
    "darkroom_model_load_duration_seconds",
    "Loading a model, with its warm-up picture.",
    ["model_version"],
    buckets=_LOAD_SECONDS,
)
CLAIMS_LOST = Counter("darkroom_claims_lost_total", "Work given up: the claim on the job was lost.")
STORAGE_RETRIES = Counter(
    "darkroom_storage_retries_total", "Times that a job at work waited for the picture store, and asked it again."
)
# The newest value: the child that held memory before is gone.
DEVICE_MEMORY = Gauge(
    "darkroom_device_memory_bytes",
    "What the worker's process holds of the GPU's memory, or of the machine's where there is none.",
    ["device"],
    multiprocess_mode="mostrecent",
)

# ---- The courier
SWEPT = Counter("darkroom_swept_jobs_total", "Jobs that the sweep moved on, by what had become of them.", ["reason"])
SWEEP = Gauge(
    "darkroom_sweep_timestamp_seconds", "When the last sweep of this courier ended.", multiprocess_mode="mostrecent"
)
WEBHOOK = Histogram(
    "darkroom_webhook_delivery_duration_seconds",
    "Tries to deliver a webhook: `delivered`, `postponed` to a later try, `declined` by 410, or `given_up`.",
    ["outcome"],
    buckets=_WEBHOOK_SECONDS,
)


def begin(role: str) -> None:
    """Say who this process is. What alerts count is there at 0 from the start: its first one is a rise too."""
    BUILD.labels(role=role, version=__version__).set(1)
    if role == "web":
        for status in (202, 500, 503):
            HTTP_REQUEST.labels("POST", "/generate", status)
    if role == "courier":
        for reason in ("deadline_exceeded", "lease_expired", "upload_expired"):
            SWEPT.labels(reason)
        for outcome in ("delivered", "postponed", "declined", "given_up"):
            WEBHOOK.labels(outcome)


def registry(settings: Settings, *more: Collector) -> CollectorRegistry:
    """What this role's processes have counted, and these besides."""
    found, folder = CollectorRegistry(), settings.prometheus_multiproc_dir
    # A process that no role has started (a test's) has its own numbers only.
    own = MultiProcessCollector(None, folder) if folder else REGISTRY  # type: ignore[no-untyped-call]
    for collector in (own, *more):
        found.register(collector)
    return found


def serve(settings: Settings, *more: Collector) -> None:
    """Tell the numbers on METRICS_BIND, where that is set; for the roles that have no web server."""
    if not settings.metrics_bind:
        return
    host, _, port = settings.metrics_bind.rpartition(":")
    try:
        start_http_server(int(port), host.strip("[]") or "0.0.0.0", registry(settings, *more))  # noqa: S104, as it was asked for
    except OSError as error:
        raise SettingsError(f"METRICS_BIND: {settings.metrics_bind} cannot be used ({error.strerror})") from None


def forget(settings: Settings, pid: int) -> None:
    """A process is gone: what it told of the present holds no more. What it counted stays counted."""
    mark_process_dead(pid, settings.prometheus_multiproc_dir)  # type: ignore[no-untyped-call]


def clear(settings: Settings) -> None:
    """The role is gone, and takes its numbers with it; a folder that it was given may be others' too."""
    folder = Path(settings.prometheus_multiproc_dir)
    if not tallies.is_own(folder):
        return
    for file in folder.glob("*.db"):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
