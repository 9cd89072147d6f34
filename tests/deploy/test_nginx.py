"""config/nginx, run by NGINX: before two real web processes, and before a pretended one that keeps what it is asked."""

import contextlib
import json
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import yaml

from app.schemas import Problem, TaskQuery
from app.settings import Settings
from app.watch import PATIENCE
from app.web import MAX_BODY_BYTES
from tests.backends import embedded
from tests.nginx import CONFIG, Load, Nginx, Pretended, render
from tests.stack import ROOT, Stack, free_port, until

pytestmark = pytest.mark.deploy
LIMITS = (CONFIG / "limits.conf").read_text()


def limit(name):
    """The number that limits.conf gives under this name, without its unit."""
    return int(re.search(rf"(\d+)(?:r/s|s)?(?: nodelay)?; # {name}$", LIMITS, re.MULTILINE)[1])


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """Two web processes; no worker, so that what is accepted stays queued."""
    folder = tmp_path_factory.mktemp("web")
    ports = [free_port(), free_port()]
    with embedded(folder) as backends, Stack(folder, **backends, TRUSTED_PROXIES="1", QUEUE_LIMIT="0") as stack:
        stack.ports, stack.port = ports, ports[0]
        stack.webs = [stack.start("web", WEB_BIND=f"127.0.0.1:{port}") for port in ports]
        until(lambda: all(ready(port) for port in ports), 60, "two web processes are ready")
        yield stack


def ready(port):
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5).ok
    return False


@pytest.fixture(scope="module")
def nginx(stack, tmp_path_factory):
    server = Nginx(tmp_path_factory.mktemp("nginx") / "config", [f"127.0.0.1:{port}" for port in stack.ports])
    yield server
    server.stop()


@pytest.fixture
def web():
    pretended = Pretended()
    yield pretended
    pretended.stop()


@pytest.fixture
def before_pretended(web, tmp_path):
    # What takes ten seconds to run out takes one.
    hurry = {"client_header_timeout 10s": "client_header_timeout 1s"}
    # Twice, so that there is a next one.
    server = Nginx(tmp_path / "config", [web.address] * 2, hurry)
    yield server
    server.stop()


def a_problem(answer, status):
    """The answer is a whole problem document with this status."""
    code, headers, body = answer
    assert (code, headers["Content-Type"]) == (status, "application/problem+json")
    problem = Problem.model_validate_json(body)
    assert problem.status == status
    assert re.fullmatch("[0-9a-f]{32}", problem.trace_id)
    assert re.fullmatch("[0-9a-f]{32}", headers["X-Request-ID"])
    return problem


def generate(nginx, client="127.0.0.1", headers=(), **fields):
    body = json.dumps({"prompt": "a red circle", **fields})
    return nginx.ask("POST", "/generate", body, {"Content-Type": "application/json", **dict(headers)}, client)


# ---- TLS, redirects, refusals


def test_http_is_redirected_for_good_with_method_and_query_kept(nginx):
    url = f"http://127.0.0.1:{nginx.http_port}/tasks?limit=1"
    answer = requests.post(url, allow_redirects=False, timeout=10)
    assert (answer.status_code, answer.headers["Location"]) == (308, "https://127.0.0.1/tasks?limit=1")


def test_http_is_redirected_to_the_port_that_compose_publishes(web, tmp_path):
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    script = services["nginx"]["entrypoint"][-1].replace("$$", "$").replace("/run/darkroom/", f"{tmp_path}/config/")
    server = Nginx(tmp_path / "config", [web.address])
    for port, told in (("443", ""), ("8443", ":8443")):
        subprocess.run(["sh", "-c", script.replace("exec nginx", "exec true")], env={"HTTPS_PORT": port}, check=True)
        server.process.send_signal(signal.SIGHUP)
        url, place = f"http://127.0.0.1:{server.http_port}/tasks", f"https://127.0.0.1{told}/tasks"
        until(lambda: requests.get(url, allow_redirects=False, timeout=10).headers["Location"] == place, 10, place)  # noqa: B023
    server.stop()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_only_current_tls_is_spoken(nginx, version):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # So that it is the server who refuses.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", nginx.port), timeout=5) as plain:
        if version is ssl.TLSVersion.TLSv1_1:
            with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
                context.wrap_socket(plain)
        else:
            with context.wrap_socket(plain) as secure:
                assert secure.version() == version.name.replace("_", ".")


def test_who_asks_too_often_is_told_429_and_others_are_not(nginx):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: nginx.ask("GET", "/healthz", client="127.0.7.1"), range(limit("burst") + 40)))
    refused = [answer for answer in answers if answer[0] != 200]
    assert len(answers) - len(refused) >= limit("burst")
    problem = a_problem(refused[0], 429)
    assert (problem.code, refused[0][1]["Retry-After"]) == ("rate_limited", "2")
    assert nginx.ask("GET", "/healthz", client="127.0.7.2")[0] == 200


def test_a_body_that_is_too_large_is_refused_with_the_web_tiers_own_limit(nginx):
    problem = a_problem(generate(nginx, prompt="x" * MAX_BODY_BYTES), 413)
    assert problem.instance == "/generate"
    assert generate(nginx)[0] == 202


def test_an_upload_may_be_as_large_as_the_web_tier_allows(nginx, stack):
    most = Settings.model_fields["upload_max_bytes"].default
    a_problem(nginx.ask("PUT", "/files/token/input.png", b"x" * (most + 1)), 413)
    # The token is forged. Whoever refuses in the middle of a body breaks the connection now and then.
    for _ in range(8):
        a_problem(nginx.ask("PUT", "/files/token/input.png", b"x" * most), 403)


def test_what_nobody_outside_needs_is_not_there(nginx):
    a_problem(nginx.ask("GET", "/metrics"), 404)


def test_refusals_of_the_web_tier_pass_unchanged(nginx):
    assert a_problem(nginx.ask("GET", "/tasks/unknown"), 404).code == "task_not_found"
    assert a_problem(generate(nginx, prompt=""), 422).errors[0].field == "prompt"


def test_answers_tell_browsers_to_come_by_https(nginx):
    for path in ("/healthz", "/metrics"):
        assert nginx.ask("GET", path)[1]["Strict-Transport-Security"] == "max-age=31536000"


# ---- What passes


def test_events_arrive_while_the_task_goes_on(nginx):
    task_id = json.loads(generate(nginx)[2])["task_id"]
    connection = nginx.connection(timeout=3 * PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", f"/tasks/{task_id}/events")
        stream = connection.getresponse()
        # Each of these is read while the answer is still open: nothing was held back.
        assert b"event: status" in b"".join(stream.readline() for _ in range(3))
        assert nginx.ask("POST", f"/tasks/{task_id}/cancel")[0] == 200
        assert b'"phase": "DONE"' in b"".join(stream.readline() for _ in range(4))


def test_a_signed_url_is_good_through_nginx_and_in_no_log(stack, tmp_path):
    port = stack.ports[0]
    nginx = Nginx(tmp_path / "config", [f"127.0.0.1:{port}"])
    try:
        document = json.loads(generate(nginx, input_image=True)[2])
        path = "/files/" + document["upload_url"].split("/files/")[1]
        assert nginx.ask("PUT", path, (ROOT / "docs/page.png").read_bytes())[0] == 200
        assert nginx.ask("PUT", path, b"x" * 20_000_001)[0] == 413
    finally:
        nginx.stop()
    logs = "".join(path.read_text() for path in (nginx.folder / "access.log", nginx.folder / "error.log"))
    assert '"url.path":"/files/"' in logs
    assert path.split("/")[2] not in logs


def test_the_web_tier_learns_the_real_client_and_nothing_that_it_made_up(before_pretended, web):
    lies = {"X-Forwarded-For": "10.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "evil", "Forwarded": "by=x"}
    answer = before_pretended.ask("GET", "/x", headers={**lies, "Remote_User": "root"}, client="127.0.8.1")
    assert answer[0] == 200
    seen = web.requests[0][2]
    assert (seen["X-Forwarded-For"], seen["X-Forwarded-Proto"], seen["Host"]) == ("127.0.8.1", "https", "127.0.0.1")
    assert {"X-Forwarded-Host", "Forwarded", "Remote_User"} & set(seen) == set()


@pytest.mark.parametrize(("given", "passed"), [("mine-1", "mine-1"), ("no good", None), ("x" * 65, None), (None, None)])
def test_a_request_keeps_its_id_or_gets_one(before_pretended, web, given, passed):
    before_pretended.ask("GET", "/x", headers={"X-Request-ID": given} if given else {})
    assert re.fullmatch(passed or "[0-9a-f]{32}", web.requests[0][2]["X-Request-ID"])


def test_connections_to_the_web_tier_are_used_again(before_pretended, web):
    for _ in range(5):
        before_pretended.ask("GET", "/x")
    assert {request[2].get("Connection") for request in web.requests} == {None}


@pytest.mark.parametrize("key", ["mine", None])
def test_a_request_whose_web_process_dies_is_made_again_with_the_same_idempotency_key(before_pretended, web, key):
    web.drops = 1
    assert generate(before_pretended, headers={"Idempotency-Key": key} if key else {})[0] == 200
    first, second = [request[2]["Idempotency-Key"] for request in web.requests]
    assert first == second
    assert first == key or re.fullmatch("[0-9a-f]{32}", first)


def test_what_must_not_happen_twice_is_not_made_again(before_pretended, web):
    web.drops = 1
    problem = a_problem(before_pretended.ask("POST", "/tasks/1/rerun"), 502)
    assert (problem.code, len(web.requests)) == ("internal", 1)


# ---- Attacks


SMUGGLED = {
    "two lengths of two kinds": "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": "Content-Length: 0\r\nContent-Length: 4\r\n\r\nGET ",
    "an unknown encoding": "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": "Content-Length : 4\r\n\r\nGET ",
    "a length that is no number": "Content-Length: +4\r\n\r\nGET ",
}


@pytest.mark.parametrize("how", SMUGGLED)
def test_a_request_that_could_be_read_in_two_ways_reaches_no_web_process(before_pretended, web, how):
    with tls(before_pretended) as connection:
        connection.sendall(f"POST /x HTTP/1.1\r\nHost: localhost\r\n{SMUGGLED[how]}".encode())
        first = connection.recv(1000)
    assert re.match(rb"HTTP/1.1 (400|501) ", first)
    assert web.requests == []


def test_no_other_protocol_is_spoken_through_it(before_pretended, web):
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    assert before_pretended.ask("GET", "/x", headers=headers)[0] == 200
    assert {"Upgrade", "Connection", "HTTP2-Settings"} & set(web.requests[0][2]) <= {"HTTP2-Settings"}


@contextlib.contextmanager
def tls(nginx, client="127.0.0.1"):
    connection = nginx.connection(client)
    connection.connect()
    try:
        yield connection.sock
    finally:
        connection.close()


def test_ten_thousand_idle_and_slow_connections_stop_nobody(before_pretended, web, record_property):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    number = min(10_000, most - 2000)
    record_property("idle_connections", number)
    with contextlib.ExitStack() as opened:
        for index in range(number):
            idle = socket.create_connection(("127.0.0.1", before_pretended.port), 5, (f"127.0.9.{1 + index % 200}", 0))
            opened.enter_context(idle)
        slow = [opened.enter_context(tls(before_pretended, "127.0.10.1")) for _ in range(20)]
        for connection in slow:
            connection.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        began = time.monotonic()
        assert before_pretended.ask("GET", "/x", client="127.0.10.2")[0] == 200
        assert time.monotonic() - began < 2
        # A byte now and then does not help: the whole header must have come.
        until(lambda: all(is_cut(connection) for connection in slow), 15, "the slow ones are cut off")
    assert len(web.requests) == 1


def is_cut(connection):
    try:
        connection.settimeout(0.05)
        connection.sendall(b"x")
        return b"408" in (answer := connection.recv(1000)) or not answer
    except TimeoutError:
        return False
    except OSError:
        return True


# ---- Restarts


def test_web_processes_restarted_one_after_the_other_under_load_drop_no_request(nginx, stack, record_property):
    with Load(nginx, clients=12) as load:
        until(lambda: load.answers > 50, 30, "the load has begun")
        for index, port in enumerate(stack.ports):
            stack.webs[index].kill(15)
            assert stack.webs[index].process.wait(30) == 0
            stack.webs[index] = stack.start("web", WEB_BIND=f"127.0.0.1:{port}")
            until(lambda port=port: ready(port), 60, "the new one is ready")
        enough = load.answers + 50
        until(lambda: load.answers > enough, 30, "the load has gone on")
    record_property("answers", load.answers)
    assert load.failures == []
    assert len(load.accepted) == len(set(load.accepted))


def test_nginx_that_is_reloaded_keeps_who_waits(nginx):
    task_id = json.loads(generate(nginx, client="127.0.30.1")[2])["task_id"]
    answers = []
    waits = threading.Thread(
        target=lambda: answers.append(nginx.ask("GET", f"/tasks/{task_id}?wait=2", client="127.0.30.1"))
    )
    before = {child.pid for child in workers_of(nginx)}
    waits.start()
    subprocess.run([*nginx.command, "-s", "reload"], check=True, capture_output=True)
    until(lambda: {child.pid for child in workers_of(nginx)} - before, 10, "new workers")
    assert nginx.ask("GET", "/healthz", client="127.0.30.2")[0] == 200
    waits.join(30)
    assert [answer[0] for answer in answers] == [200]


def workers_of(nginx):
    import psutil

    return psutil.Process(nginx.process.pid).children()


# ---- Files that must agree


def test_the_numbers_fit_the_web_tier():
    text = (CONFIG / "nginx.conf").read_text()
    gunicorn = (ROOT / "config/gunicorn.conf.py").read_text()
    longest = max(bound.le for bound in TaskQuery.model_fields["wait"].metadata if hasattr(bound, "le"))
    assert limit("bodySize") == MAX_BODY_BYTES
    assert limit("uploadBodySize") == Settings.model_fields["upload_max_bytes"].default
    assert f"client_max_body_size {limit('uploadBodySize')};" in text
    assert longest < limit("readTimeoutSeconds") <= int(re.search(r"worker_shutdown_timeout (\d+)s", text)[1])
    idle = int(re.search(r"keepalive_timeout (\d+)s", (CONFIG / "upstream.conf").read_text())[1])
    assert idle < int(re.search(r"^keepalive = (\d+)", gunicorn, re.MULTILINE)[1])


def test_the_chart_has_the_same_numbers():
    found = yaml.safe_load((ROOT / "charts/darkroom/values.yaml").read_text())["ingress"]["limits"]
    assert {name: limit(name) for name in found} == found


# What gixy says that is meant so.
MEANT = {
    "proxy_buffering_off": "the stream of events, which must not be held back",
    "worker_rlimit_nofile_vs_connections": "compose.yaml gives the container its number of open files; NGINX may not",
    "stale_dns_cache": "compose.yaml restarts NGINX with the web tier; names that are looked up again need NGINX 1.27",
}


def test_gixy_finds_nothing_insecure(tmp_path):
    render(tmp_path / "config", ["web.example:8000"])
    gixy = Path(sys.executable).parent / "gixy"
    told = subprocess.run(
        [gixy, "-f", "json", tmp_path / "config/nginx.conf"], capture_output=True, text=True, check=False, timeout=60
    )
    found = {finding["plugin"] for finding in json.loads(told.stdout)}
    assert found == set(MEANT), told.stdout
