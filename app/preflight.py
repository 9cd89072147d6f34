"""What is looked at before everything is started on this machine: what cannot go well is told at once."""

import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile

from pydantic import ValidationError

from app import doctor
from app.callers import check_door
from app.errors import DarkroomError, reason
from app.models import load_catalogue
from app.schemas import GenerateRequest
from app.settings import Settings, load_client

NEEDED_BYTES = 100_000_000


class UpError(DarkroomError):
    """What keeps the stack from running, in one sentence."""


def prompt(words: str) -> None:
    """Refuse now what the API would refuse once everything runs."""
    try:
        GenerateRequest(prompt=words)
    except ValidationError as error:
        raise UpError(f"--prompt: {reason(error.errors()[0])}") from None


def settings(known: Settings) -> None:
    """All mistakes together and at once, and not one by one in the processes' logs."""
    check_door(known)
    if known.api_keys_file and not load_client().api_key:
        raise UpError("API_KEYS_FILE is set, so that the first picture needs a key too: DARKROOM_API_KEY holds it")
    if known.metrics_bind:
        raise UpError("METRICS_BIND: worker and courier, both on this machine, would tell their numbers at one address")
    _models(known)
    if folder := known.storage_folder:
        _pictures(folder)


def _models(known: Settings) -> None:
    default = load_catalogue(known.models_file, known.default_model_version).default
    if known.worker_queue not in ("", default.queue):
        raise UpError(
            f"WORKER_QUEUE: {known.worker_queue} does not serve {default.model_version}, of which the first picture is "
            "to be; DEFAULT_MODEL_VERSION names one that it serves"
        )


def _pictures(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UpError(f"STORAGE_URL: {folder} cannot be written: {error.strerror}") from None
    room(folder, "STORAGE_URL: ")


def given(known: Settings, names: Mapping[str, str]) -> None:
    """What is not ours to start must be there."""
    for name, look in (("REDIS_URL", doctor.redis), ("BROKER_URL", doctor.broker)):
        try:
            if name in names:
                look(known)
        except DarkroomError as error:
            raise UpError(f"{name}: {error.__cause__ or error}") from None


def port(host: str, number: int) -> None:
    """Whether the web tier can listen there; raises UpError."""
    address = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, number))
        except OSError as error:
            other = f"choose another with WEB_BIND={host}:{number + 1}"
            raise UpError(f"port {number} on {host} cannot be used ({error.strerror}); {other}.") from None


def room(folder: Path, setting: str = "") -> None:
    """Whether there is some on this folder's disk; raises UpError."""
    if shutil.disk_usage(folder).free < NEEDED_BYTES:
        raise UpError(f"{setting}{disk_full(folder)}")


def disk_full(folder: Path) -> str:
    """What is said then."""
    return f"the disk is full: {folder} needs at least {NEEDED_BYTES // 1_000_000} MB free."
