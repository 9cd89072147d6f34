"""Objects that nobody asks for any more: a worker may delete nothing, so it tells the courier of them.

Such is a picture that was on its way into the store while its task was deleted: it would lie there for as long as
results are kept.
"""

from collections.abc import Collection, Iterator
from functools import partial

from app.jobs import ask
from app.services import Services

_KEY = "storage:leftovers"
# So many at most in one sweep.
BATCH = 100


def leave(services: Services, names: Collection[str]) -> None:
    """These are to be deleted; raises StoreUnavailable."""
    ask(partial(services.redis.sadd, _KEY, *names))


def clear(services: Services) -> Iterator[None]:
    """Delete what was left, a step for each; raises StorageUnavailable, and the rest is there the next time."""
    for name in ask(partial(services.redis.srandmember, _KEY, BATCH)):
        services.storage.delete(name)
        ask(partial(services.redis.srem, _KEY, name))
        yield
