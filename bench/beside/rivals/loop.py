"""For libraries of asyncio behind a route that is not: one loop in a thread of its own."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

_loop = asyncio.new_event_loop()
_thread = threading.Thread(target=_loop.run_forever, daemon=True)
_starting = threading.Lock()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """What it gives, from any thread. The thread begins with the first call: after gunicorn's fork."""
    with _starting:
        if not _thread.is_alive():
            _thread.start()
    return asyncio.run_coroutine_threadsafe(work, _loop).result()
