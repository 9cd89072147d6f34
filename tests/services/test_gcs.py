"""Google's signed URLs, as Google checks them; and a bucket that is not there, refuses or says something else."""

import json
from urllib.parse import quote, urlsplit

import google.oauth2.credentials
import pytest
import requests
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from app.errors import StorageFailed, StorageUnavailable
from app.storage import make_storage
from tests.services.sockets import on_port
from tests.signed import soon, verify
from tests.stack import free_port


@pytest.fixture
def public_key(account):
    text = json.loads(account.read_text())["private_key"]
    return serialization.load_pem_private_key(text.encode(), None).public_key()


def test_the_signed_urls_are_signed_for_their_method_object_and_time(gcs, name, public_key):
    get, put = gcs.download_url(name, 60), gcs.upload_url(name, 60, 100).url
    verify(get, "GET", public_key, soon())
    verify(put, "PUT", public_key, soon())
    assert urlsplit(get).path == urlsplit(put).path
    assert urlsplit(get).path.endswith(f"/prefix/{name}")
    for url, method in ((get, "PUT"), (put, "GET"), (get, "DELETE"), (put.replace("output", "other"), "PUT")):
        with pytest.raises(InvalidSignature):
            verify(url, method, public_key, soon())
    with pytest.raises(PermissionError):
        verify(get, "GET", public_key, soon(61))
    with pytest.raises(InvalidSignature):
        verify(get.replace("X-Goog-Expires=60", "X-Goog-Expires=99"), "GET", public_key, soon())


def test_a_bucket_that_is_not_there_is_told(google, settings, name):
    nowhere = make_storage(settings.model_copy(update={"storage_url": "gs://no-such-bucket"}))
    with pytest.raises(StorageUnavailable):
        nowhere.put(name, b"picture", "image/png")


def test_a_bucket_without_a_prefix_holds_objects_under_their_own_names(google, bucket, settings, name, emulator):
    storage = make_storage(settings.model_copy(update={"storage_url": f"gs://{bucket}/"}))
    storage.put(name, b"picture", "image/png")
    assert requests.get(f"{emulator}/storage/v1/b/{bucket}/o/{quote(name, safe='')}", timeout=10).ok
    assert storage.url_of(name) == f"gs://{bucket}/{name}"


def test_an_object_that_arrives_damaged_is_refused(gcs, name, monkeypatch):
    from google.cloud.storage import Blob

    monkeypatch.setattr(Blob, "crc32c", property(lambda self: "AAAAAA=="))
    with pytest.raises(StorageFailed, match="not stored whole"):
        gcs.put(name, b"picture", "image/png")


def test_a_google_that_refuses_is_told_as_unavailable(gcs, name, monkeypatch):
    from google.api_core.exceptions import Forbidden

    def refuse(*args, **options):
        raise Forbidden("no")

    monkeypatch.setattr(gcs._bucket, "get_blob", refuse)
    with pytest.raises(StorageUnavailable, match="Forbidden"):
        gcs.size(name)


@pytest.mark.parametrize("may_delete", [True, False])
@pytest.mark.usefixtures("google")
def test_a_large_object_that_arrives_damaged_is_refused_likewise(may_delete, settings, name, monkeypatch):
    """Above 8 MiB Google's client sends it in a session of its own, and compares the checksums itself."""

    def damaging(environ, start_response):
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0))
        refused = environ["REQUEST_METHOD"] == "DELETE" and not may_delete
        head = [("Content-Type", "application/json"), ("Location", f"{address}/session")]
        start_response("403 Forbidden" if refused else "200 OK", head)
        return [b'{"size": "9000000", "crc32c": "AAAAAA=="}']

    with on_port(free_port(), damaging) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        storage = make_storage(settings.model_copy(update={"storage_url": "gs://bucket"}))
        with pytest.raises(StorageFailed, match="not stored whole"):
            storage.put(name, bytes(9_000_000), "image/png")


def test_a_persons_own_credentials_are_told_as_such(settings, monkeypatch):
    person = google.oauth2.credentials.Credentials("token")
    monkeypatch.setattr("google.auth.default", lambda **_: (person, "project"))
    storage = make_storage(settings.model_copy(update={"storage_url": "gs://bucket"}))
    with pytest.raises(StorageUnavailable, match="person's own credentials"):
        storage.download_url("output/x.png", 60)


@pytest.mark.parametrize("answer", [b"[]", b'"no"', b"null", b'{"size": "much"}', b"<html>"])
@pytest.mark.usefixtures("google")
def test_answers_that_are_not_googles_are_told_as_unavailable(answer, settings, name, monkeypatch):
    def between(environ, start_response):
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0))
        start_response("200 OK", [("Content-Type", "application/json")])
        return [answer]

    with on_port(free_port(), between) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        storage = make_storage(settings.model_copy(update={"storage_url": "gs://bucket"}))
        for ask in (lambda: storage.size(name), lambda: storage.put(name, b"picture", "image/png")):
            with pytest.raises(StorageUnavailable):
                ask()


def test_a_process_without_credentials_starts_and_tells_that_the_bucket_does_not_answer(
    settings, monkeypatch, tmp_path
):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    storage = make_storage(settings.model_copy(update={"storage_url": "gs://bucket"}))
    asked = [lambda: storage.put("x", b"", ""), lambda: storage.get("x", 1), lambda: storage.size("x")]
    asked += [lambda: storage.delete("x"), lambda: storage.upload_url("x", 1, 1), lambda: storage.download_url("x", 1)]
    for ask in asked:
        with pytest.raises(StorageUnavailable, match="DefaultCredentialsError"):
            ask()
