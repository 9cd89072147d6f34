"""The error tree: drawn once, and speaking the words of the contract."""

import inspect
import re
from pathlib import Path

import pytest

from app import errors
from app.errors import DarkroomError, JobError, RequestError

CLASSES = {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, DarkroomError)}

PAGE = (Path(__file__).parents[2] / "docs/errors.md").read_text()
NGINX = (Path(__file__).parents[2] / "config/nginx/problems.conf").read_text()


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


def leaves(root):
    return [cls for cls in CLASSES.values() if issubclass(cls, root) and cls is not root]


REFUSALS = {
    *((cls.status, cls.code, cls.retryable) for cls in leaves(RequestError)),
    *((status, code, False) for status, code in (*errors.HTTP_CODES.items(), (500, RequestError.code))),
}


def test_clients_can_read_what_each_refusal_means_and_whether_to_ask_again():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (yes|no) \| \S.* \|$", PAGE, re.MULTILINE)
    assert sorted((int(status), code, again == "yes") for status, code, again in rows) == sorted(REFUSALS)


def test_clients_can_read_why_a_task_failed_and_whether_another_one_may_succeed():
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \| \S.* \|$", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted((cls.code, "yes" if cls.retryable else "no") for cls in leaves(JobError))


def test_the_served_document_names_every_word(client):
    schemas = client.get("/openapi.json").json["components"]["schemas"]
    assert set(schemas["Problem"]["properties"]["code"]["enum"]) == {code for _, code, _ in REFUSALS}
    assert set(schemas["TaskError"]["properties"]["code"]["enum"]) == {cls.code for cls in leaves(JobError)}


def test_nginx_says_what_the_web_tier_would_say():
    said = {(int(status), code) for status, code in re.findall(r'"status":(\d+),.*?"code":"(\w+)"', NGINX)}
    # These the web tier has no error of its own for.
    assert said - {(status, code) for status, code, _ in REFUSALS} == {
        (414, "invalid_request"), (502, "internal"), (504, "internal")
    }  # fmt: skip


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
