"""config/nginx before real or pretended web processes, with ports of its own; nothing else of it is changed."""

import contextlib
import datetime as dt
import json
import os
import shutil
import signal
import socketserver
import ssl
import subprocess
import threading
from http.client import HTTPException, HTTPSConnection
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.backends import skip_or_fail
from tests.stack import ROOT, free_port, until

CONFIG = ROOT / "config/nginx"


def certificate(folder):
    """A certificate for localhost that nobody vouches for, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=localhost")
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    alternatives = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    signed = builder.add_extension(alternatives, critical=False).sign(key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    folder.mkdir()
    (folder / "tls.crt").write_bytes(signed.public_bytes(pem))
    (folder / "tls.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


def render(folder, upstreams, https="127.0.0.1:8443", http="127.0.0.1:8080", changes=()):
    """A copy of config/nginx that listens on loopback and asks these `host:port`s."""
    shutil.copytree(CONFIG, folder)
    certificate(folder / "tls")
    temporary = dict.fromkeys(("/tmp/", "/run/darkroom/", "/etc/darkroom/"), f"{folder}/")
    temporary |= {"/dev/stdout": f"{folder}/access.log"}
    listens = {"listen 8080": f"listen {http}", "listen 8443": f"listen {https}"}
    servers = "".join(f"server {upstream} max_fails=0;\n" for upstream in upstreams)
    for path in folder.glob("*.conf"):
        lines = [line for line in path.read_text().splitlines(keepends=True) if "listen [::]" not in line]
        text = "".join(lines).replace("server web:8000 max_fails=0;", servers)
        for old, new in {**temporary, **listens, **dict(changes)}.items():
            text = text.replace(old, new)
        path.write_text(text)


class Nginx:
    """One running NGINX."""

    def __init__(self, folder, upstreams, changes=()):
        program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin")
        if program is None:
            skip_or_fail("needs nginx: script/tools nginx")
        self.folder, self.port, self.http_port = folder, free_port(), free_port()
        render(folder, upstreams, f"127.0.0.1:{self.port}", f"127.0.0.1:{self.http_port}", changes)
        self.command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        self.log = (folder / "error.log").open("wb")
        # As root its workers would be somebody who may not read the test's folder.
        also = "user root;" if os.geteuid() == 0 else ""
        self.process = subprocess.Popen([*self.command, "-g", f"daemon off; {also}"], stderr=self.log)
        until(self.answers, 10, "nginx answers")

    def answers(self):
        assert self.process.poll() is None, (self.folder / "error.log").read_text()
        return (self.folder / "nginx.pid").exists()

    def connection(self, client="127.0.0.1", timeout=30):
        """A connection from one of the addresses of this machine."""
        context = ssl.create_default_context(cafile=self.folder / "tls/tls.crt")
        return HTTPSConnection("127.0.0.1", self.port, timeout=timeout, source_address=(client, 0), context=context)

    def ask(self, method, path, body=None, headers=(), client="127.0.0.1"):
        """Status, headers and body of one request on a connection of its own."""
        connection = self.connection(client)
        try:
            connection.request(method, path, body=body, headers=dict(headers))
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)
        self.log.close()


class Pretended:
    """A web process that keeps what it was asked, and may go away before it answers."""

    def __init__(self):
        self.requests, self.drops = [], 0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 512


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        owner = self.server.owner
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        owner.requests.append((self.command, self.path, self.headers, body))
        if owner.drops:
            owner.drops -= 1
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_GET = do_POST = do_PUT = answer  # noqa: N815, names that http.server asks for

    def log_message(self, *_):
        pass


class Load:
    """Clients that submit, wait and look, each from its own address, until they are stopped."""

    def __init__(self, nginx, clients):
        self.nginx, self.failures, self.accepted = nginx, [], []
        self.answers, self._stop = 0, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(f"127.0.20.{1 + n}",)) for n in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, address):
        connection = self.nginx.connection(address)
        with contextlib.closing(connection):
            while not self._stop.wait(0.1):
                try:
                    self._round(connection)
                except (OSError, HTTPException) as error:
                    self.failures.append(repr(error))
                    connection.close()

    def _round(self, connection):
        body = json.dumps({"prompt": "a red circle"})
        task = self._ask(connection, 202, "POST", "/generate", body, {"Content-Type": "application/json"})
        if task:
            self.accepted.append(task["task_id"])
            self._ask(connection, 200, "GET", f"/tasks/{task['task_id']}?wait=0.5")

    def _ask(self, connection, status, *request):
        connection.request(*request)
        response = connection.getresponse()
        text = response.read()
        self.answers += 1
        if response.status != status:
            self.failures.append((request[:2], response.status, text))
            return None
        return json.loads(text)
