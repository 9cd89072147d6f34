"""Pictures in Google Cloud Storage, by its own client. What every store promises: storage.py."""

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cached_property, partial
from typing import Any, cast
from urllib.parse import urlsplit

from app.errors import ObjectExists, StorageFailed, StorageUnavailable
from app.storage import ObjectInfo, SignedUpload, confirm, name_in, too_large

# What the client falls over when something in between answers with what it does not expect.
_NOT_GOOGLES = (ValueError, TypeError, KeyError, AttributeError)


class GCSStorage:
    """Google Cloud Storage by its own client; credentials and endpoint come from the environment as Google says."""

    def __init__(self, storage_url: str, seconds: float) -> None:
        self._seconds = seconds
        self._storage_url = storage_url.rstrip("/")
        self._prefix = urlsplit(storage_url).path.strip("/")

    @cached_property
    def _bucket(self) -> Any:
        # Deferred: the import costs half a second that `file://` deployments need not pay, and finding the
        # credentials may ask the metadata server.
        from google.cloud import storage

        return storage.Client().bucket(urlsplit(self._storage_url).netloc)

    @cached_property
    def _bounds(self) -> dict[str, Any]:
        """How long one call may take; left to itself the client tries for two minutes."""
        from google.cloud.storage.retry import DEFAULT_RETRY

        return {"timeout": self._seconds, "retry": DEFAULT_RETRY.with_timeout(self._seconds)}

    def put(self, name: str, data: bytes, content_type: str) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        blob = self._blob(name)

        def write() -> ObjectInfo:
            options = {"content_type": content_type, "if_generation_match": 0, "checksum": "crc32c"}
            blob.upload_from_string(data, **options, **self._bounds)
            return ObjectInfo(blob.size, blob.crc32c)

        try:
            stored = self._call(write)
        except PreconditionFailed:
            raise ObjectExists(name) from None
        except NotFound:
            raise StorageUnavailable(f"There is no bucket {self._bucket.name}.") from None
        confirm(stored, data, name)

    def get(self, name: str, max_bytes: int) -> bytes | None:
        from google.api_core.exceptions import NotFound, RequestRangeNotSatisfiable

        blob = self._blob(name)
        try:
            data: bytes = self._call(lambda: blob.download_as_bytes(end=max_bytes, checksum=None, **self._bounds))
        except NotFound:
            return None
        except RequestRangeNotSatisfiable:
            # Every range lies beyond the end of an empty object.
            return b""
        if len(data) > max_bytes:
            raise too_large(max_bytes)
        return data

    def size(self, name: str) -> int | None:
        def look() -> int | None:
            blob = self._bucket.get_blob(self._full(name), **self._bounds)
            return blob.size if blob else None

        size: int | None = self._call(look)
        return size

    def delete(self, name: str) -> None:
        from google.api_core.exceptions import NotFound

        with suppress(NotFound):
            self._call(lambda: self._blob(name).delete(**self._bounds))

    def upload_url(self, name: str, seconds: int, max_bytes: int) -> SignedUpload:  # noqa: ARG002, see SignedUpload
        return SignedUpload(self._sign("PUT", name, seconds))

    def download_url(self, name: str, seconds: int) -> str:
        return self._sign("GET", name, seconds)

    def url_of(self, name: str) -> str:
        return f"{self._storage_url}/{name}"

    def name_of(self, url: str, field: str = "input_url") -> str:
        return name_in(self._storage_url, url, field)

    @property
    def origin(self) -> str:
        endpoint = urlsplit(self._call(lambda: self._bucket.client.api_endpoint))
        return f"{endpoint.scheme}://{endpoint.netloc}"

    def _full(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _blob(self, name: str) -> Any:
        return self._call(lambda: self._bucket.blob(self._full(name)))

    def _sign(self, method: str, name: str, seconds: int) -> str:
        url: str = self._call(
            lambda: self._blob(name).generate_signed_url(
                version="v4",
                method=method,
                expiration=timedelta(seconds=seconds),
                api_access_endpoint=self._bucket.client.api_endpoint,
                credentials=self._signer,
            )
        )
        return url

    @cached_property
    def _signer(self) -> Any:
        """Who signs: the private key where there is one, else IAM's signBlob for the account we run as."""
        import google.auth
        from google.auth import iam
        from google.auth.credentials import Signing
        from google.auth.transport.requests import Request
        from google.oauth2.service_account import Credentials

        own: Any = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])[0]
        if isinstance(own, Signing):
            return own
        if not hasattr(own, "service_account_email"):
            raise StorageUnavailable(
                "A person's own credentials sign no URL: Google Cloud Storage wants a service account's."
            )
        # Left to itself it waits for two minutes.
        ask = partial(Request(), timeout=self._seconds)
        # Tells the account's name.
        own.refresh(ask)
        signer, signing = cast("Any", iam.Signer), cast("Any", Credentials)
        return signing(signer(ask, own, own.service_account_email), own.service_account_email, "")

    @staticmethod
    def _call(command: Callable[[], Any]) -> Any:
        """Run one request; its errors end here, but those that answer the question."""
        from google.api_core.exceptions import (
            GoogleAPIError,
            NotFound,
            PreconditionFailed,
            RequestRangeNotSatisfiable,
        )
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption
        from requests.exceptions import RequestException

        try:
            return command()
        except (NotFound, PreconditionFailed, RequestRangeNotSatisfiable):
            raise
        except DataCorruption as error:
            raise StorageFailed("A picture was not stored whole.") from error
        except (GoogleAPIError, GoogleAuthError, RequestException, OSError, *_NOT_GOOGLES) as error:
            if isinstance(error.__context__, DataCorruption):
                # Found while the client cleared away what it had written, which a worker may not.
                raise StorageFailed("A picture was not stored whole.") from error
            raise StorageUnavailable(f"Google Cloud Storage does not answer ({type(error).__name__}).") from error
