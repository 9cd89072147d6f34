"""What the app does not see: how a web process stops, and what it says to those who send no HTTP.

Whoever knocks after SIGTERM is refused at once, so that a proxy asks the next one.
"""

import socket

from gunicorn import util
from gunicorn.workers.gthread import ThreadWorker

from app import problems


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
