"""What the app does not see: how a web process stops, and what it says to those who send no HTTP.

Whoever knocks after SIGTERM is refused at once, so that a proxy asks the next one.
"""

import errno
import socket
import time

import structlog
from gunicorn import util
from gunicorn.workers.gthread import ThreadWorker

from app import problems

log = structlog.get_logger("darkroom.web")

_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# Seconds after which the door is tried again.
BREATH = 0.5


class DrainingWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threads, with a door that closes when the process is told to stop.

    gunicorn leaves it open until the last request is answered: connections made meanwhile would hang for as long as
    somebody waits with `?wait=60`, and then be dropped.
    """

    def init_process(self) -> None:
        # gunicorn tells such faults in a page of HTML that repeats what was sent, and has no setting for it.
        util.write_error = write_problem
        super().init_process()

    def is_parent_alive(self) -> bool:
        """Who has lost its parent stops as if it had been told to: the next web process wants the door now."""
        is_there = bool(super().is_parent_alive())
        self.alive: bool = self.alive and is_there
        return is_there

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if not self.alive:
            for listener in self.sockets:
                self._take_who_is_at_the_door(listener)
                listener.close()

    def accept(self, listener: object) -> None:
        """Take who knocks. While there is no file left for them they wait at the door, and who is in for BREATH."""
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            log.warning("web.no_files_left", reason=error.strerror)
            time.sleep(BREATH)

    def _take_who_is_at_the_door(self, listener: object) -> None:
        """Their connection is made already: they may have sent their request."""
        before = -1
        while before != self.nr_conns:
            before = self.nr_conns
            self.accept(listener)


def write_problem(client: socket.socket, status: int, reason: str, _: str) -> None:
    """Answer with a problem document and no more of the connection."""
    body = problems.of_the_server(status, reason)
    head = f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
    util.write_nonblock(client, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
