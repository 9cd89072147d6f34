"""`keys new`, `list` and `revoke`: the file that API_KEYS_FILE names, which holds a hash of each key."""

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import ValidationError

from app.callers import Caller, digest_of, read_callers
from app.console import Output, answers
from app.errors import DarkroomError, reason

_HEADER = "# The callers of this deployment. `python -m app keys` writes this file whole; comments are not kept.\n"
_UNSET = "API_KEYS_FILE is not set: put this entry into the file that it will name."


class KeysError(DarkroomError):
    """What keeps a key from being made or revoked, in one sentence."""


def new_key(name: str, **terms: Any) -> tuple[str, Caller]:
    """A fresh key, which is shown once, and what of it is kept; raises KeysError for terms that cannot be."""
    key = f"dk_{secrets.token_urlsafe(32)}"
    try:
        return key, Caller(name=name, sha256=digest_of(key), **terms)
    except ValidationError as error:
        faults = (f"{e['loc'][0]}: {reason(e)}" for e in error.errors(include_input=False))
        raise KeysError("; ".join(faults)) from None


def add(path: Path, caller: Caller) -> None:
    """Put one more caller into the file, which is made when it is missing; raises KeysError, SettingsError."""

    def added(callers: list[Caller]) -> list[Caller]:
        if any(other.name == caller.name for other in callers):
            raise KeysError(f"{path} holds {caller.name} already: revoke it first, or choose another name.")
        return [*callers, caller]

    _change(path, added)


def revoke(path: Path, name: str) -> None:
    """Take a caller out of the file; raises KeysError, SettingsError."""

    def without(callers: list[Caller]) -> list[Caller]:
        left = [caller for caller in callers if caller.name != name]
        if len(left) == len(callers):
            raise KeysError(f"{path} holds no {name}.")
        return left

    _change(path, without)


def entry(callers: list[Caller]) -> str:
    """These callers as YAML, as they stand in the file."""
    return yaml.safe_dump({"callers": [caller.model_dump() for caller in callers]}, sort_keys=False)


def _change(path: Path, change: Callable[[list[Caller]], list[Caller]]) -> None:
    try:
        with _alone(path.parent):
            _write(path, _HEADER + entry(change(read_callers(path) if path.exists() else [])))
    except OSError as error:
        raise KeysError(f"{path} cannot be written: {error.strerror}.") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One change at a time, so that none is lost."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _write(path: Path, text: str) -> None:
    """Whole or not at all; a new file is for its owner alone, an old one keeps its rights."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            if path.exists():
                _take_rights(file.fileno(), path.stat())
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _take_rights(file: int, before: os.stat_result) -> None:
    # Only root may give a file away; everyone else owns it already or cannot.
    with suppress(PermissionError):
        os.fchown(file, before.st_uid, before.st_gid)
    os.fchmod(file, stat.S_IMODE(before.st_mode))


# The setting alone: a key can be made where no other setting of the service is.
_file = click.option(
    "--file", "path", envvar="API_KEYS_FILE", type=click.Path(dir_okay=False, path_type=Path), help="API_KEYS_FILE."
)


def _needed(path: Path | None) -> Path:
    if path is None:
        raise KeysError("API_KEYS_FILE is not set, so there are no keys.")
    return path


@click.group("keys")
def keys() -> None:
    """Make, list and revoke the API keys of a deployment."""


@keys.command("new")
@click.argument("name")
@click.option("--role", type=click.Choice(["client", "operator"]), default="client", show_default=True)
@click.option("--rate", default="10/second", show_default=True, help="Most requests; '' for any number.")
@click.option("--open-tasks", type=int, default=100, show_default=True, help="Most unfinished tasks; 0: any number.")
@_file
@answers
def new(output: Output, path: Path | None, name: str, **terms: Any) -> int:
    """Make a key for NAME. It is printed this once; its hash goes into API_KEYS_FILE."""
    key, caller = new_key(name, **terms)
    if path:
        add(path, caller)
        output.note(f"{name} is in {path}. This is the key; it is shown this once:")
    else:
        output.note(f"{_UNSET}\n\n{entry([caller])}\nThis is the key; it is shown this once:")
    output.result({"key": key, **caller.model_dump(), "file": str(path) if path else None}, key)
    return 0


@keys.command("list")
@_file
@answers
def list_(output: Output, path: Path | None) -> int:
    """List the callers of API_KEYS_FILE."""
    callers = read_callers(_needed(path))
    rows = [[c.name, c.role, c.rate or "any", str(c.open_tasks or "any")] for c in callers]
    document = {"callers": [caller.model_dump(exclude={"sha256"}) for caller in callers]}
    output.table(document, ["name", "role", "rate", "open tasks"], rows)
    return 0


@keys.command("revoke")
@click.argument("name")
@_file
@answers
def revoke_(output: Output, path: Path | None, name: str) -> int:
    """Revoke NAME's key. A running web tier heeds that within about a second."""
    revoke(_needed(path), name)
    output.result({"revoked": name}, f"{name} is revoked.")
    return 0
