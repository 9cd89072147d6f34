"""What only an operator may ask: the quarantine. Without keys everyone on this machine is one."""

from typing import Annotated, Any, Literal

from flask import Response
from flask_openapi3 import OpenAPI, Tag
from pydantic import BaseModel, ConfigDict, Field

from app.callers import Caller
from app.documents import as_time
from app.errors import Forbidden
from app.http import answer, caller, responses
from app.intake import Intake
from app.listing import before
from app.quarantine import Entry
from app.services import Services

ADMIN = Tag(name="admin")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EntryPath(BaseModel):
    entry_id: Annotated[str, Field(max_length=100, description="The `id` of an entry.")]


class EntriesQuery(_Strict):
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    cursor: Annotated[str | None, Field(max_length=100, description="`next_cursor` of the page before.")] = None


class QuarantineEntry(_Strict):
    """A task that was lost with too many workers, or a message that nobody can read."""

    id: Annotated[str, Field(description="The task's id, or the message's.")]
    kind: Literal["task", "message"]
    reason: Annotated[str, Field(description="The code of the task's error, or `unreadable_message`.")]
    detail: str
    quarantined_at: str
    queue: str
    model_version: str | None
    caller: str | None
    attempt: int | None
    attempts: list[dict[str, Any]]
    bytes: Annotated[int | None, Field(description="Length of a message's body.")]


class QuarantineEntries(_Strict):
    entries: list[QuarantineEntry]
    next_cursor: str | None


class Requeued(_Strict):
    id: str
    task_id: Annotated[str | None, Field(description="The new task that does the old one's work; null for a message.")]


def register(app: OpenAPI, services: Services) -> None:
    """The routes under /admin."""
    quarantine = services.quarantine

    @app.get("/admin/quarantine", tags=[ADMIN], responses=responses({200: QuarantineEntries}, 403, 503))
    def quarantined(query: EntriesQuery) -> Response:
        """What was given up on, newest first."""
        _operator()
        found, until = quarantine.entries(before(query.cursor), query.limit)
        cursor = None if until is None else repr(until)
        return answer(QuarantineEntries(entries=[_document(entry) for entry in found], next_cursor=cursor))

    @app.post(
        "/admin/quarantine/<string:entry_id>/requeue",
        tags=[ADMIN],
        responses=responses({202: Requeued}, 403, 404, 409, 503),
    )
    def requeue(path: EntryPath) -> Response:
        """Run a task again, as a new one of the same caller, or put a message back into its queue."""
        _operator()
        entry = quarantine.take(path.entry_id)
        try:
            task_id = _requeue(entry, services)
        except Exception:
            quarantine.put_back(entry)
            raise
        quarantine.remove(entry)
        return answer(Requeued(id=entry.id, task_id=task_id), 202)

    @app.delete("/admin/quarantine/<string:entry_id>", tags=[ADMIN], responses=responses({204: None}, 403, 404, 503))
    def drop(path: EntryPath) -> Response:
        """Take an entry out for good. A task stays FAILED, and is kept as long as any other."""
        _operator()
        quarantine.remove(quarantine.take(path.entry_id))
        return Response(status=204)


def _operator() -> None:
    """Raises Forbidden for every other caller."""
    if not caller().is_operator:
        raise Forbidden("Only an operator's key may do that.")


def _requeue(entry: Entry, services: Services) -> str | None:
    """The id of the new task; None for a message."""
    if entry.job is None:
        services.quarantine.send_again(entry)
        return None
    # Its caller's task again, whatever else that caller has open by now.
    owner = Caller.model_construct(name=entry.job.caller, sha256="", open_tasks=0)
    # Under a key, so that it is one new task also where this process is killed before the entry is removed; no client
    # can send one with a tab in it.
    return Intake(services).rerun(entry.job.task_id, owner, f"requeue\t{entry.id}").job.task_id


def _document(entry: Entry) -> QuarantineEntry:
    job, letter = entry.job, entry.letter
    attempts = job.attempts if job else []
    return QuarantineEntry(
        id=entry.id,
        kind="task" if job else "message",
        reason=entry.reason,
        detail=entry.detail,
        quarantined_at=as_time(entry.quarantined_at) or "",
        queue=(job.queue if job else letter.queue if letter else ""),
        model_version=job.params.model_version if job else None,
        caller=job.caller if job else None,
        attempt=job.attempt if job else None,
        attempts=[{**attempt, "started_at": as_time(attempt["started_at"])} for attempt in attempts],
        bytes=len(letter.body) if letter else None,
    )
