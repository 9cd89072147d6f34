"""The error tree: drawn once, and speaking the words of the contract."""

import inspect
import re

import pytest

from app import errors
from app.errors import DarkroomError, JobError, RequestError

CLASSES = {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, DarkroomError)}

# The words of the HTTP contract that a client programs against.
WORDS = {
    "invalid_request", "unknown_model_version", "idempotency_key_reuse", "idempotency_conflict", "rate_limited",
    "quota_exceeded", "queue_full", "broker_unavailable", "store_unavailable", "task_not_found", "task_expired",
    "input_missing", "input_invalid", "upload_expired", "canceled", "deadline_exceeded", "gpu_out_of_memory",
    "worker_lost", "attempts_exhausted", "model_load_failed", "safety_blocked", "storage_failed", "internal",
    "not_ready", "no_worker", "webhook_not_found", "entry_not_found", "not_requeuable", "unauthorized", "forbidden",
}  # fmt: skip


def drawn():
    """The names of the drawing with their depth: its branches, and lists of leaves separated by commas."""
    for line in errors.__doc__.splitlines():
        if match := re.match(r"    ([│├└─ ]*)(\w+.*)", line):
            names = re.split(r"\s{2,}", match[2])[0]
            yield from ((len(match[1]) // 4, name) for name in names.split(", "))


def test_the_drawing_names_exactly_the_errors_that_there_are():
    assert sorted(name for _, name in drawn()) == sorted(CLASSES)


def test_the_drawing_shows_who_descends_from_whom():
    parents = {}
    for depth, name in drawn():
        parents[depth] = name
        assert depth == 0 or CLASSES[name].__base__.__name__ == parents[depth - 1], name


@pytest.mark.parametrize("cls", [c for c in CLASSES.values() if issubclass(c, (RequestError, JobError))])
def test_an_error_that_clients_meet_has_a_word_of_the_contract(cls):
    assert cls.code in WORDS
    assert isinstance(cls.retryable, bool)


@pytest.mark.parametrize("cls", [c for c in CLASSES.values() if issubclass(c, RequestError) and c is not RequestError])
def test_a_refusal_has_a_status_of_its_kind_and_a_title(cls):
    assert 400 <= cls.status < 500 or cls.status == 503
    assert cls.title != RequestError.title
    # What says "come again" is what may work the next time.
    assert cls.retryable == (cls.status in (429, 503)) or cls.status == 409


def test_a_refusal_without_words_says_its_title():
    refusal = errors.TaskNotFound()
    assert (str(refusal), refusal.detail, refusal.errors) == ("No such task", "No such task", [])


def test_a_failed_job_tells_code_message_and_whether_to_try_again():
    document = errors.UploadExpired("too late").document()
    assert document == {"code": "upload_expired", "message": "too late", "retryable": True}
