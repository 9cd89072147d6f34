"""How many of each kind may be at work at once, so that nobody takes what others need."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# A kind, and whose of that kind: `("caller", "alice")`.
Seat = tuple[str, str]
# Everybody sits here too.
ALL = ("all", "")


class Places:
    """Seats of several kinds: whoever comes takes all that it needs, or none. `shares`: how many each may have."""

    def __init__(self, shares: Mapping[str, int]) -> None:
        self._shares = shares
        self._taken: Counter[Seat] = Counter()
        self._lock = threading.Lock()

    def is_free(self, seat: Seat) -> bool:
        """Whether there is one more."""
        return self._taken[seat] < self._shares[seat[0]]

    def take(self, *seats: Seat) -> bool:
        """Take one of each; False when one of them is not free."""
        with self._lock:
            free = all(map(self.is_free, seats))
            self._taken.update(seats if free else [])
        return free

    def leave(self, *seats: Seat) -> None:
        """Give back what was taken."""
        with self._lock:
            self._taken.subtract(seats)
            # The names of those who once sat here are not kept.
            self._taken += Counter()

    @contextmanager
    def taken(self, *seats: Seat) -> Iterator[bool]:
        """Whether there is a place, and that for as long as this lasts."""
        free = self.take(*seats)
        try:
            yield free
        finally:
            if free:
                self.leave(*seats)


def to_wait(threads: int, *, callers_are_known: bool) -> Places:
    """In a web process of so many threads, of which each client that waits has one until it is answered.

    A known caller has at most half of them, all callers together all but a few: so whoever does not wait is always
    answered, the probes and those who submit.
    """
    most = max(1, threads - max(2, threads // 64))
    # One name for everyone says nothing about who takes more than a share.
    return Places({"all": most, "caller": max(1, threads // 2) if callers_are_known else most})
