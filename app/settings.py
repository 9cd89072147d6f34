"""The one table of settings: name, type, default, help. Read once, from the environment, by `load()`.

config/README.md shows the same table; a test compares them. Nothing else in the house reads `os.environ`
for a setting of its own.
"""

import base64
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from app import __version__
from app.errors import SettingsError, reason
from app.loopback import is_loopback


def _is_an_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if url and (not known or re.search(r"[\s?#]", url)):
        raise ValueError("must be written like https://darkroom.example")
    return url


Address = Annotated[str, AfterValidator(_is_an_address)]


def _one_of(*schemes: str) -> BeforeValidator:
    def check(url: str) -> str:
        try:
            parts = urlsplit(str(url))
            parts.port  # noqa: B018, raises ValueError when it is no number
        except ValueError:
            raise ValueError("is no URL") from None
        if parts.scheme not in schemes or "//" not in str(url):
            raise ValueError(f"must start with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        if parts.scheme.startswith("redis") and not re.fullmatch("/?[0-9]*", parts.path):
            raise ValueError("must end in the number of a database: redis://host:6379/0")
        if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
            raise ValueError("must hold an absolute path: file:///folder")
        if parts.scheme == "gs" and not parts.netloc:
            raise ValueError("must name a bucket: gs://bucket/prefix")
        if parts.scheme in ("file", "gs") and re.search("[?#]", str(url)):
            raise ValueError("must hold no ? and no #, which would end the path; in a folder's they are %3F and %23")
        return url

    return BeforeValidator(check)


BrokerUrl = Annotated[str, _one_of("amqp", "amqps", "redis", "rediss")]
RedisUrl = Annotated[str, _one_of("redis", "rediss", "unix")]
StorageUrl = Annotated[str, _one_of("gs", "file")]


DAY = 86_400
# Google Cloud Storage takes a signature for a week at most.
LONGEST_SIGNATURE = 604_800
# What Google signs with for an account without a key of its own, as in GKE, it keeps for so long at least.
_SURE = "on Google Cloud without a key of one's own 43200 at most are sure."

# The files beside the table: the catalogue, and how gunicorn and the one-machine mode are run.
CONFIG = Path(__file__).parents[1] / "config"


class Settings(BaseSettings):
    """Every setting of every role. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, extra="ignore", validate_default=True)

    broker_url: BrokerUrl = Field(
        "amqp://guest:guest@127.0.0.1:5672//", description="Queue: `amqp://` (RabbitMQ) or `redis://`."
    )
    redis_url: RedisUrl = Field("redis://127.0.0.1:6379/0", description="Status store and Celery's result backend.")
    storage_url: StorageUrl = Field(
        "file:///var/lib/darkroom", description="Pictures: `gs://bucket/prefix` or `file:///folder`."
    )
    ca_file: str = Field(
        "",
        description="Who vouches for `amqps://` and `rediss://` servers, a PEM file; default: whom the system trusts.",
    )
    signing_key: SecretStr = Field(
        SecretStr(""), description="Signs the URLs of `file://` storage; at least 32 characters. `gs://` needs none."
    )
    public_url: Address = Field(
        "", description="The address clients use, for `file://` URLs; default `http://` + `WEB_BIND`."
    )
    web_bind: str = Field(
        "127.0.0.1:8000", pattern="[^:]:[0-9]+$", description="Where the web tier listens, `host:port`."
    )
    trusted_proxies: int = Field(
        0,
        ge=0,
        le=16,
        description="Proxies before the web tier whose word on client and scheme (`X-Forwarded-*`) counts.",
    )
    web_workers: int = Field(1, ge=1, le=64, description="Web processes.")
    web_threads: int = Field(
        1024, ge=4, le=8192, description="Clients that one web process serves or lets wait at once."
    )
    models_file: str = Field("config/models.yaml", description="The catalogue of models.")
    default_model_version: str = Field(
        "", description="Model of a request that names none; default: the catalogue's first."
    )
    models_cache: str = Field("var/models", description="Folder of fetched models (`python -m app models prefetch`).")
    models_fetch: bool = Field(False, description="A worker may fetch a model that is missing when it loads it.")
    model_memory: int = Field(
        0, ge=0, description="Weights that a worker keeps loaded, in bytes; the model used longest ago goes. 0: all."
    )
    model_patience: float = Field(
        30,
        ge=0,
        le=DAY,
        description="With MODEL_MEMORY: jobs of a loaded model may pass the first in line over for this long.",
    )
    worker_max_batch: int = Field(
        0, ge=0, le=64, description="Queued jobs of one kind that a worker runs at once; 0: as the model's entry says."
    )
    worker_turn: float = Field(
        10, ge=0, le=60, description="Seconds for which a worker goes on with the line before it takes a new message."
    )
    worker_max_memory: int = Field(
        0,
        ge=0,
        description="Main memory in bytes: once a worker's models held more they are loaded afresh after the job, in a "
        "new process. 0: any. Leave room above what a job takes: each process leaves 40 kB of numbers until the worker "
        "ends.",
    )
    worker_queue: str = Field("", description="The one queue a worker consumes; default: the default model's.")
    worker_name: str = Field(
        socket.gethostname(), description="How this worker calls itself; default: the host's name."
    )
    worker_version: str = Field(
        __version__, description="Written into every result; the images set version and commit."
    )
    worker_grace: int = Field(
        20, ge=1, le=3600, description="On SIGTERM a running job may still take this long, else it is handed back."
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$", description="`auto`, `cpu`, `cuda`, `cuda:N` or `mps`."
    )
    torch_threads: int = Field(
        0, ge=0, le=1024, description="CPU threads of the model; they change a picture's bytes. 0: one per core."
    )
    lease: float = Field(15, ge=0.5, le=3600, description="A worker that is silent for this long loses its job.")
    max_attempts: int = Field(3, ge=1, le=100, description="Workers that one job may cost before it is FAILED.")
    time_limit: int = Field(
        1500, ge=1, le=DAY, description="One job on one worker; below RabbitMQ's consumer timeout of 1800."
    )
    deadline: int = Field(DAY, ge=1, description="A job without `deadline_seconds` is given up after this long.")
    queue_limit: int = Field(10_000, ge=0, description="Most jobs that may wait in one queue; 0: any number.")
    api_keys_file: str = Field("", description="API keys as hashes (`python -m app keys new`); none: loopback only.")
    allow_anonymous: bool = Field(
        False, description="Without API keys, answer other machines too: behind a proxy that says who may ask."
    )
    upload_ttl: int = Field(
        900, ge=1, le=LONGEST_SIGNATURE, description=f"How long a client may take to upload its input picture; {_SURE}"
    )
    upload_max_bytes: int = Field(20_000_000, ge=1, description="Largest input picture.")
    signed_url_ttl: int = Field(
        3600, ge=1, le=LONGEST_SIGNATURE, description=f"How long a picture's signed URL is good; {_SURE}"
    )
    result_ttl: int = Field(
        604_800,
        ge=1,
        le=3650 * DAY,
        description="How long finished tasks and pictures are kept; no job's deadline is later.",
    )
    # Well below what ALIVE_FILE's readers and the alert SweepStopped wait for.
    sweep_interval: float = Field(2, ge=0.1, le=20, description="Pause between two sweeps of the courier.")
    unconfirmed_after: float = Field(
        30, ge=1, le=DAY, description="A job whose publishing was never confirmed is published again."
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        description="Signs webhooks: `whsec_` and 24 to 64 bytes in base64; to rotate it, the new and the old one with "
        "a space between. Without it a `webhook_url` is refused.",
    )
    webhook_timeout: float = Field(10, gt=0, le=60, description="A webhook's receiver must answer within this.")
    webhook_pause: float = Field(
        5,
        gt=0,
        le=3600,
        description="Pause before a webhook's second try; each of the six later ones is four times as long.",
    )
    webhook_allow_private: bool = Field(
        False, description="For development: webhooks may go to `http://`, to this machine and to private networks."
    )
    alive_file: str = Field("", description="A file that worker and courier touch every few seconds while they live.")
    metrics_bind: str = Field(
        "",
        pattern="^$|:[0-9]+$",
        description="Where worker and courier tell Prometheus their numbers, `host:port`; without it nowhere. "
        "The web tier does at `/metrics`.",
    )
    prometheus_multiproc_dir: str = Field(
        "", description="Folder in which a role's processes keep these numbers; default: a temporary one of its own."
    )
    otel_exporter_otlp_endpoint: str = Field(
        "",
        description="Where traces go, OTLP over HTTP: `http://collector:4318`; without it nowhere. The other `OTEL_` "
        "variables of OpenTelemetry's SDK hold too.",
    )
    log_format: Literal["console", "json"] = Field("json", description="`json` (one ECS document a line) or `console`.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The least severe line written."
    )

    @field_validator("web_bind", "metrics_bind")
    @classmethod
    def _a_port_that_there_is(cls, bind: str) -> str:
        if bind and not 1 <= int(bind.rpartition(":")[2]) <= 65_535:
            raise ValueError("must end in a port from 1 to 65535")
        return bind

    @field_validator("signing_key")
    @classmethod
    def _local_storage_needs_a_key(cls, key: SecretStr, others: ValidationInfo) -> SecretStr:
        if str(others.data.get("storage_url")).startswith("file:") and len(key.get_secret_value()) < 32:
            raise ValueError("must have at least 32 characters when STORAGE_URL is file://")
        return key

    @field_validator("result_ttl")
    @classmethod
    def _outlasts_every_job(cls, seconds: int, others: ValidationInfo) -> int:
        if seconds < others.data.get("deadline", 0):
            raise ValueError("must be at least DEADLINE: until then a job may need its input picture")
        return seconds

    @field_validator("webhook_secret")
    @classmethod
    def _is_a_secret_of_standard_webhooks(cls, secrets: SecretStr) -> SecretStr:
        for secret in secrets.get_secret_value().split():
            try:
                size = len(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
            except ValueError:
                size = 0
            if not secret.startswith("whsec_") or not 24 <= size <= 64:
                raise ValueError("must be `whsec_` and 24 to 64 bytes in base64, or two such, separated by a space")
        return secrets

    @property
    def base_url(self) -> str:
        """The address of the web tier as its clients see it, without a slash at the end."""
        return (self.public_url or f"http://{self.web_bind}").rstrip("/")

    @property
    def storage_folder(self) -> Path | None:
        """Where pictures lie on this machine; None when they lie in a bucket."""
        place = urlsplit(self.storage_url)
        return Path(unquote(place.path)) if place.scheme == "file" else None

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the web tier, as far as WEB_BIND says."""
        return is_loopback(self.web_bind.rpartition(":")[0].strip("[]"))

    def is_ours(self, host: str) -> bool:
        """Whether an open door on this machine may be asked for by this name.

        Without it every page that a browser here shows could reach us, under a name that leads to loopback.
        """
        if self.api_keys_file or self.allow_anonymous or not self.is_local:
            return True
        return is_loopback(host) or host == urlsplit(self.public_url).hostname

    @property
    def embedded(self) -> bool:
        """Whether the broker is a Redis: no quorum queues, no publisher confirms."""
        return self.broker_url.startswith("redis")


class ClientSettings(BaseSettings):
    """What the client commands read: which deployment, and with which key. docs/cli.md tells of both."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="DARKROOM_", env_ignore_empty=True, extra="ignore")

    url: Address = "http://127.0.0.1:8000"
    api_key: SecretStr = SecretStr("")

    @field_validator("api_key")
    @classmethod
    def _fits_into_a_header(cls, key: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[!-~]*", key.get_secret_value()):
            raise ValueError("holds what no key holds, a space or a line's end perhaps")
        return key

    @property
    def key_is_overheard(self) -> bool:
        """Whether the key goes unencrypted to another machine."""
        address = urlsplit(self.url)
        return bool(self.api_key) and address.scheme == "http" and not is_loopback(address.hostname or "")


def load_client() -> ClientSettings:
    """Read DARKROOM_URL and DARKROOM_API_KEY; raises SettingsError naming every mistake."""
    try:
        return ClientSettings()
    except ValidationError as error:
        told = (f"DARKROOM_{_describe(e)}" for e in error.errors(include_input=False))
        raise SettingsError("\n".join(told)) from None


def given() -> set[str]:
    """The names of the service's settings that the environment holds."""
    return set(EnvSettingsSource(Settings, env_ignore_empty=True)())


def load(**instead: Any) -> Settings:
    """Read the settings from the environment, but for those given; raises SettingsError naming every mistake."""
    try:
        return Settings(**instead)
    except ValidationError as error:
        raise SettingsError("\n".join(_describe(e) for e in error.errors(include_input=False))) from None


def _describe(error: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in error["loc"]).upper()
    message = reason(error)
    if error["type"] == "string_pattern_mismatch":
        message = f"not of the form that config/README.md gives: {Settings.model_fields[name.lower()].description}"
    return f"{name}: {message}" if name else message


def table() -> str:
    """The table of settings as Markdown, one row a setting: what config/README.md shows."""
    lines = [f"| `{r['name']}` | {_code(r['default'])} | {r['description']} |" for r in rows()]
    return "\n".join(["| setting | default | what it does |", "| --- | --- | --- |", *lines])


def _code(default: str | None) -> str:
    return f"`{default}`" if default else ""


def rows() -> list[dict[str, str | None]]:
    """Name, default and description of each setting; no default where it depends on the machine, or is a secret."""
    return [_row(name, field) for name, field in Settings.model_fields.items()]


def _row(name: str, field: FieldInfo) -> dict[str, str | None]:
    # A default that depends on the machine is told by its help.
    untold = name == "worker_name" or isinstance(field.default, SecretStr) or field.default == ""
    return {"name": name.upper(), "default": None if untold else str(field.default), "description": field.description}
