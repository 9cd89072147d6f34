"""Every error that a client, an operator or a caller of this package can meet.

    DarkroomError
    ├── SettingsError             the environment or the catalogue is wrong; the process does not start
    ├── InvalidTransition         a move that the table in record.py does not allow: a mistake in our code
    ├── ClaimLost                 someone else holds the job now, or it is over: stop work, write nothing
    ├── ApiError                  what a client of the service meets: it said no, or nothing
    ├── DeviceLost                the GPU failed: the process ends, another one runs the job
    ├── EgressError               a webhook's receiver was not reached, or did not answer as it should
    │   └── AddressRefused        its address is one that no stranger may send us to
    ├── ObjectExists              the output object is there already, from an earlier attempt
    ├── RequestError              told to the client as a problem document, nothing was accepted
    │   ├── BadRequest, InvalidRequest, UnknownModelVersion
    │   ├── TaskNotFound, TaskExpired, ModelNotFound
    │   ├── InputMissing, NotReady, NoPicture, WebhookNotFound, IdempotencyKeyReuse, IdempotencyConflict
    │   ├── EntryNotFound, NotRequeuable
    │   ├── Unauthorized, Forbidden, RateLimited, QuotaExceeded, QueueFull
    │   └── BrokerUnavailable, StoreUnavailable, StorageUnavailable, NoWorker
    └── JobError                  ends an accepted job as FAILED; told in the task's `error`
        ├── InputInvalid, UploadExpired, DeadlineExceeded, Canceled
        ├── GpuOutOfMemory, ModelLoadFailed, AttemptsExhausted, StorageFailed, SafetyBlocked
        └── Internal

Each class carries its `code` (a word of the HTTP contract), HTTP `status`, `title`, and whether the same
request may succeed later (`retryable`). docs/errors.md tells clients of each code.
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar


class DarkroomError(Exception):
    """The root. The message is written for the person who reads it: never a traceback, never a secret."""


class SettingsError(DarkroomError):
    """One or more settings are wrong; the message names all of them."""


class InvalidTransition(DarkroomError):
    """A job was asked to make a move that `record.TRANSITIONS` does not hold."""


class ClaimLost(DarkroomError):
    """The token is no longer the job's: its lease ran out, or the job ended."""


# Statuses of a service that is away or busy.
_PASSING = {0, 429, 502, 503, 504}


class ApiError(DarkroomError):
    """The service said no, or nothing.

    `status` is its HTTP status, 0 without an answer; `problem` its problem document, empty when there was none;
    `retry_after` how many seconds it asks to wait, None when it did not say.
    """

    def __init__(
        self, message: str, problem: dict[str, Any] | None = None, *, status: int = 0, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.problem = problem or {}
        self.status = status
        self.retry_after = retry_after

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed in a while."""
        return self.status in _PASSING


class DeviceLost(DarkroomError):
    """The device failed; nothing that this process still does with it can be trusted."""


class ObjectExists(DarkroomError):
    """An object of this name is in the store already."""


class EgressError(DarkroomError):
    """A request to an outside receiver failed. The message is short and names no URL: it is shown to the caller."""


class AddressRefused(EgressError):
    """The receiver's address is private, reserved, or otherwise none that a stranger may send us to."""


class RequestError(DarkroomError):
    """A refusal. `errors` names the fields at fault, as `{"field": …, "reason": …}`; `retry_after` is in seconds."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(
        self, detail: str = "", errors: list[dict[str, Any]] | None = None, *, retry_after: int | None = None
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.errors = errors or []
        self.retry_after = retry_after


class BadRequest(RequestError):
    status, code, title = 400, "invalid_request", "Bad request"


class InvalidRequest(RequestError):
    status, code, title = 422, "invalid_request", "Invalid request"


class UnknownModelVersion(RequestError):
    status, code, title = 422, "unknown_model_version", "Unknown model version"


class TaskNotFound(RequestError):
    status, code, title = 404, "task_not_found", "No such task"


class ModelNotFound(RequestError):
    status, code, title = 404, "unknown_model_version", "No such model"


class TaskExpired(RequestError):
    status, code, title = 410, "task_expired", "Task expired"


class InputMissing(RequestError):
    status, code, title, retryable = 409, "input_missing", "Input picture not uploaded", True


class NotReady(RequestError):
    status, code, title, retryable = 409, "not_ready", "Not done yet", True


class NoPicture(RequestError):
    status, code, title = 409, "no_picture", "The task has failed"


class EntryNotFound(RequestError):
    status, code, title = 404, "entry_not_found", "Not in quarantine"


class NotRequeuable(RequestError):
    status, code, title = 409, "not_requeuable", "Cannot be queued again"


class WebhookNotFound(RequestError):
    status, code, title = 404, "webhook_not_found", "The task has no webhook"


class IdempotencyKeyReuse(RequestError):
    status, code, title = 422, "idempotency_key_reuse", "Idempotency key used for another request"


class IdempotencyConflict(RequestError):
    status, code, title, retryable = 409, "idempotency_conflict", "The first request is still in flight", True


class Unauthorized(RequestError):
    status, code, title = 401, "unauthorized", "Not authenticated"


class Forbidden(RequestError):
    status, code, title = 403, "forbidden", "Not allowed"


class RateLimited(RequestError):
    status, code, title, retryable = 429, "rate_limited", "Too many requests", True


class QuotaExceeded(RequestError):
    status, code, title, retryable = 429, "quota_exceeded", "Too many unfinished tasks", True


class QueueFull(RequestError):
    status, code, title, retryable = 429, "queue_full", "Queue full", True


class BrokerUnavailable(RequestError):
    status, code, title, retryable = 503, "broker_unavailable", "Queue unavailable", True


class StoreUnavailable(RequestError):
    status, code, title, retryable = 503, "store_unavailable", "Status store unavailable", True


class StorageUnavailable(RequestError):
    status, code, title, retryable = 503, "storage_failed", "Object storage unavailable", True


class NoWorker(RequestError):
    status, code, title, retryable = 503, "no_worker", "No worker serves this model", True


class JobError(DarkroomError):
    """The reason why an accepted job FAILED."""

    code: str = "internal"
    retryable: bool = False

    @classmethod
    def of(cls, document: dict[str, Any]) -> "JobError":
        """The error that this is the document of."""
        error = cls(document["message"])
        error.code, error.retryable = document["code"], document["retryable"]
        return error

    def document(self) -> dict[str, Any]:
        """The task's `error`: `{code, message, retryable}`."""
        return {"code": self.code, "message": str(self), "retryable": self.retryable}

    def fields(self) -> dict[str, str]:
        """What else goes on the record, as JSON."""
        return {}


class InputInvalid(JobError):
    code = "input_invalid"


class UploadExpired(JobError):
    code, retryable = "upload_expired", True


class DeadlineExceeded(JobError):
    code, retryable = "deadline_exceeded", True


class Canceled(JobError):
    code = "canceled"

    def __init__(self, message: str = "Canceled by the client.") -> None:
        super().__init__(message)


class GpuOutOfMemory(JobError):
    code = "gpu_out_of_memory"


class ModelLoadFailed(JobError):
    code, retryable = "model_load_failed", True


class AttemptsExhausted(JobError):
    code = "attempts_exhausted"


class StorageFailed(JobError):
    code, retryable = "storage_failed", True


class SafetyBlocked(JobError):
    """`flagged` says of each picture whether the model's safety checker flagged it."""

    code = "safety_blocked"

    def __init__(self, flagged: list[bool]) -> None:
        super().__init__(f"The safety checker flagged {sum(flagged)} of {len(flagged)} pictures; none is given out.")
        self.flagged = flagged

    def fields(self) -> dict[str, str]:
        return {"safety": json.dumps({"flagged": True, "images": self.flagged})}


class Internal(JobError):
    code, retryable = "internal", True


def reason(mistake: Mapping[str, Any]) -> str:
    """What pydantic found wrong, in words; a pattern says little to people."""
    if mistake["type"] == "string_pattern_mismatch":
        return "has characters that are not allowed here"
    return str(mistake["msg"]).removeprefix("Value error, ")


# What HTTP itself refuses, before a request is understood, by its status.
HTTP_CODES = {403: "forbidden", 404: "not_found", 405: "method_not_allowed", 412: "precondition_failed",
              413: "content_too_large", 415: "unsupported_media_type"}  # fmt: skip

# Every word that the `code` of a problem document may be, and that of a task's `error`.
REFUSAL_CODES = sorted({*HTTP_CODES.values(), RequestError.code, *(cls.code for cls in RequestError.__subclasses__())})
JOB_CODES = sorted({cls.code for cls in JobError.__subclasses__()})
