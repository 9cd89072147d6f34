"""Where pictures lie: one interface, a folder on this machine, and Google Cloud Storage.

An object's name (`output/{task_id}.png`) never changes its meaning. Its address, which a request may name as its input,
is `STORAGE_URL/name` in a bucket and `file:///name` in a folder, whose place on the machine is nobody's business.
"""

import base64
import errno
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any, Protocol, TypeVar

import google_crc32c
from itsdangerous import BadSignature, URLSafeSerializer

from app.errors import InputInvalid, InvalidRequest, ObjectExists, StorageFailed, StorageUnavailable
from app.settings import Settings

# What a name begins with.
FOLDERS = ("input", "output")

T = TypeVar("T")


@dataclass(frozen=True)
class ObjectInfo:
    """What the store says of an object: size in bytes, CRC32C as Google Cloud Storage writes it (base64)."""

    size: int
    crc32c: str


@dataclass(frozen=True)
class SignedUpload:
    """How a client may bring one object: this request, with exactly these headers.

    No header is signed, so that a client that knows nothing but the URL can use it with a plain PUT; the
    bound on the size is checked once the object is there.
    """

    url: str
    method: str = "PUT"
    headers: dict[str, str] = field(default_factory=dict)


class Storage(Protocol):
    """Every method raises StorageUnavailable when the store does not answer."""

    def put(self, name: str, data: bytes, content_type: str) -> None:
        """Write a new object and confirm what arrived; raises ObjectExists, StorageFailed."""

    def get(self, name: str, max_bytes: int) -> bytes | None:
        """The object, None when it is not there; raises InputInvalid when it is larger than `max_bytes`."""

    def size(self, name: str) -> int | None:
        """Its bytes, None when it is not there."""

    def delete(self, name: str) -> None:
        """Remove the object; no error when it is not there."""

    def upload_url(self, name: str, seconds: int, max_bytes: int) -> SignedUpload:
        """A signed request that lets its holder write this one object."""

    def download_url(self, name: str, seconds: int) -> str:
        """A signed URL that lets its holder read this one object."""

    def url_of(self, name: str) -> str:
        """The object's own address."""

    def name_of(self, url: str, field: str = "input_url") -> str:
        """The name of the object with this address; raises InvalidRequest, for this field, for any other place."""

    @property
    def origin(self) -> str:
        """Where signed URLs lead, for a browser's rules; empty when that is the web tier itself."""


def crc32c(data: bytes) -> str:
    """The checksum as Google Cloud Storage writes it: base64 of four big-endian bytes."""
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def name_in(root: str, url: str, field: str) -> str:
    name = url.removeprefix(f"{root}/")
    folder, _, rest = name.partition("/")
    if not url.startswith(f"{root}/") or folder not in FOLDERS or not rest or not _plain(rest):
        raise not_ours(field)
    return name


def not_ours(field: str) -> InvalidRequest:
    """The refusal of a URL, whether it leads elsewhere or to what is another caller's."""
    reason = "must name an object of your own in this deployment's bucket"
    return InvalidRequest(f"{field}: {reason}", [{"field": field, "reason": reason}])


def _plain(name: str) -> bool:
    return name.isascii() and name.isprintable() and all(part not in ("", ".", "..") for part in name.split("/"))


def make_storage(settings: Settings, seconds: float = 2) -> Storage:
    """The store that `STORAGE_URL` names. One call of a bucket takes at most about `seconds`, tries included."""
    if folder := settings.storage_folder:
        return LocalStorage(folder, settings.base_url, settings.signing_key.get_secret_value())
    # Deferred: it is made of what is here.
    from app.gcs import GCSStorage

    return GCSStorage(settings.storage_url, seconds)


def confirm(stored: ObjectInfo | None, data: bytes, name: str) -> None:
    sent = _told(data)
    if stored != sent:
        raise StorageFailed(f"{name} was not stored whole: sent {sent}, found {stored}")


def _told(data: bytes) -> ObjectInfo:
    return ObjectInfo(len(data), crc32c(data))


@dataclass(frozen=True)
class Permit:
    """What a signed local URL allows. `max_bytes` bounds an upload."""

    method: str
    name: str
    max_bytes: int = 0


# What objects' names, and those of their parts, begin with: a task's id.
_OURS = re.compile(r"\.?[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")

# Names that no file can have are names of no object, as they are in a bucket.
_NO_SUCH_OBJECT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


class LocalStorage:
    """A folder. Its signed URLs point to the web tier (files.py), which checks them with `permit`."""

    def __init__(self, folder: Path, base_url: str, key: str) -> None:
        self._folder = folder
        self._base_url = base_url
        self._signer = URLSafeSerializer(key, salt="darkroom.storage")

    def path(self, name: str) -> Path:
        """Where the object lies."""
        return self._folder / name

    def put(self, name: str, data: bytes, content_type: str) -> None:  # noqa: ARG002, a file has none
        self.write(name, lambda target: target.write(data), exclusive=True)
        stored = self._read(name)
        confirm(None if stored is None else _told(stored), data, name)

    def write(self, name: str, fill: Callable[[Any], object], *, exclusive: bool = False) -> None:
        """Let `fill` write to a file that takes its name only when it is whole and on the disk."""
        path = self.path(name)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as target:
                fill(target)
                target.flush()
                os.fsync(target.fileno())
            os.link(part, path) if exclusive else part.replace(path)
        except FileExistsError:
            raise ObjectExists(name) from None
        except OSError as error:
            raise StorageUnavailable(f"The picture store cannot be written: {error.strerror}.") from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def get(self, name: str, max_bytes: int) -> bytes | None:
        data = self._read(name, max_bytes + 1)
        if data and len(data) > max_bytes:
            raise too_large(max_bytes)
        return data

    def size(self, name: str) -> int | None:
        found = self._look(name, Path.stat)
        return found.st_size if found and S_ISREG(found.st_mode) else None

    def delete(self, name: str) -> None:
        try:
            self.path(name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageUnavailable(f"The picture store cannot be written: {error.strerror}.") from error

    def expire(self, seconds: float) -> Iterator[None]:
        """Remove what has lain there for longer than that, as a bucket's lifecycle rule does; a step for each file."""
        for folder in FOLDERS:
            for path in (self._folder / folder).glob("*"):
                with suppress(OSError):
                    # The folder may hold what others put there.
                    if _OURS.match(path.name) and path.stat().st_mtime < time.time() - seconds:
                        path.unlink()
                yield

    def _read(self, name: str, most: int = -1) -> bytes | None:
        def read(path: Path) -> bytes:
            with path.open("rb") as file:
                return file.read(most)

        return self._look(name, read)

    def _look(self, name: str, how: Callable[[Path], T]) -> T | None:
        try:
            return how(self.path(name))
        except OSError as error:
            if error.errno in _NO_SUCH_OBJECT:
                return None
            raise StorageUnavailable(f"The picture store cannot be read: {error.strerror}.") from error

    def upload_url(self, name: str, seconds: int, max_bytes: int) -> SignedUpload:
        return SignedUpload(self._sign("PUT", name, seconds, max_bytes))

    def download_url(self, name: str, seconds: int) -> str:
        return self._sign("GET", name, seconds)

    def permit(self, token: str, now: float) -> Permit | None:
        """What this token allows; None when it is forged or its time is over."""
        try:
            method, name, expires_at, max_bytes = self._signer.loads(token)
        except (BadSignature, ValueError):
            return None
        return Permit(method, name, max_bytes) if now < expires_at else None

    def url_of(self, name: str) -> str:
        return f"file:///{name}"

    def name_of(self, url: str, field: str = "input_url") -> str:
        return name_in("file://", url, field)

    @property
    def origin(self) -> str:
        return ""

    def _sign(self, method: str, name: str, seconds: int, max_bytes: int = 0) -> str:
        token = self._signer.dumps([method, name, int(time.time()) + seconds, max_bytes])
        return f"{self._base_url}/files/{token}/{name.rpartition('/')[2]}"


def too_large(max_bytes: int) -> InputInvalid:
    return InputInvalid(f"The picture is larger than {max_bytes} bytes.")
