"""Signed URLs of an account without a private key: Google is asked to sign, and not waited for."""

import base64
import dataclasses
import http.server
import json
import threading
import time

import google.auth.credentials
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from google.auth import iam

from app.errors import StorageUnavailable
from app.listing import page
from app.schemas import TaskListQuery
from app.storage import make_storage
from tests.answers import finished
from tests.signed import soon, verify


class Account(google.auth.credentials.Credentials):
    """An account without a private key, as pods and machines have one."""

    service_account_email = "web@project.iam.gserviceaccount.com"

    def refresh(self, request):
        self.token, self.expiry = "token", None


@pytest.fixture
def keyless(settings, monkeypatch):
    """A store whose account has no key; call it with what is done with what IAM is asked to sign."""

    def make(sign, seconds=0.5):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(sign))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(iam, "_IAM_SIGN_ENDPOINT", f"http://127.0.0.1:{server.server_port}/{{}}")
        return make_storage(settings.model_copy(update={"storage_url": "gs://bucket/prefix"}), seconds)

    servers = []
    monkeypatch.setattr("google.auth.default", lambda **_: (Account(), "project"))
    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def handler_of(sign):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == f"/{Account.service_account_email}"
            assert self.headers["Authorization"] == "Bearer token"
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["payload"]
            answer = json.dumps({"signedBlob": base64.b64encode(sign(base64.b64decode(payload))).decode()}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            """Nothing."""

    return Handler


def test_an_account_without_a_key_has_google_sign(keyless):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    storage = keyless(lambda text: key.sign(text, padding.PKCS1v15(), hashes.SHA256()))
    verify(storage.download_url("output/x.png", 60), "GET", key.public_key(), soon())
    verify(storage.upload_url("output/x.png", 60, 100).url, "PUT", key.public_key(), soon())


def test_the_pictures_of_a_list_are_signed_at_once(keyless, services):
    tasks = {finished(services) for _ in range(4)}
    all_ask = threading.Barrier(len(tasks))

    def sign(text):
        # Nobody is answered before the last has asked.
        all_ask.wait(10)
        return text

    listed = page(dataclasses.replace(services, storage=keyless(sign, 5)), "anonymous", TaskListQuery())
    assert {task.task_id for task in listed.tasks if "X-Goog-Signature" in task.image_url} == tasks


def test_nobody_waits_long_for_a_google_that_does_not_sign(keyless):
    over = threading.Event()
    storage = keyless(lambda text: over.wait(30) and text)
    started = time.monotonic()
    with pytest.raises(StorageUnavailable):
        storage.download_url("output/x.png", 60)
    assert time.monotonic() - started < 10
    over.set()
