"""A folder's own signed URLs, what they cannot reach, and a disk that fails."""

import base64
import errno
import json
import os
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from app.errors import StorageUnavailable
from app.storage import make_storage
from tests.things import recording


@pytest.fixture
def services(settings, published):
    return recording(settings, published)


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
