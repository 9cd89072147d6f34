"""The same promises from a folder and from Google Cloud Storage."""

import dataclasses
import os
import threading
from pathlib import Path

import pytest
import requests

from app.errors import InputInvalid, InvalidRequest, ObjectExists
from app.gcs import GCSStorage
from app.storage import LocalStorage, make_storage
from app.web import create_app
from tests.services.sockets import on_port
from tests.stack import free_port
from tests.things import recording


@pytest.fixture
def local(settings, published):
    """A folder, and the web tier that serves its signed URLs on a real socket."""
    port = free_port()
    moved = settings.model_copy(update={"public_url": f"http://127.0.0.1:{port}"})
    served = dataclasses.replace(recording(moved, published), storage=make_storage(moved))
    with on_port(port, create_app(served)):
        yield served.storage


@pytest.fixture(params=["local", "gcs"])
def storage(request):
    return request.getfixturevalue(request.param)


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
