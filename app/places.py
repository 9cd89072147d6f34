"""How many clients a web process lets wait at once: each has a thread until it is answered."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Places:
    """A known caller has at most half of the threads to wait in, all callers together all but a few.

    So whoever does not wait is always answered: the probes, and those who submit.
    """

    def __init__(self, threads: int, *, callers_are_known: bool) -> None:
        self._all = max(1, threads - max(2, threads // 64))
        # One name for everyone says nothing about who takes more than a share.
        self._each = max(1, threads // 2) if callers_are_known else self._all
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, caller: str) -> Callable[[], None] | None:
        """What gives the place back, to be called once; None when there is none for this caller."""
        with self._lock:
            if self._taken.total() >= self._all or self._taken[caller] >= self._each:
                return None
            self._taken[caller] += 1
        return lambda: self._leave(caller)

    @contextmanager
    def taken(self, caller: str) -> Iterator[bool]:
        """Whether there is a place, and that for as long as this lasts."""
        leave = self.take(caller)
        try:
            yield leave is not None
        finally:
            if leave:
                leave()

    def _leave(self, caller: str) -> None:
        with self._lock:
            self._taken[caller] -= 1
            # The names of callers who once waited are not kept.
            self._taken += Counter()
