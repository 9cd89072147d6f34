"""How a web process stops: whoever knocks after SIGTERM is refused at once, so that a proxy asks the next one."""

from gunicorn.workers.gthread import ThreadWorker


class DrainingWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threads, with a door that closes when the process is told to stop.

    gunicorn leaves it open until the last request is answered: connections made meanwhile would hang for as long as
    somebody waits with `?wait=60`, and then be dropped.
    """

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
