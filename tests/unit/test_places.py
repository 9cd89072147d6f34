"""Who waits leaves room for who does not."""

from app.places import ALL, to_wait


def seats(caller):
    return ALL, ("caller", caller)


def filled(places, caller):
    """How many places the caller gets when it takes all that it can."""
    return len(list(iter(lambda: places.take(*seats(caller)), False)))


def test_no_known_caller_takes_more_than_half_and_all_together_leave_some_threads_free():
    places = to_wait(32, callers_are_known=True)
    assert [filled(places, caller) for caller in ("alice", "bob", "carol")] == [16, 14, 0]


def test_where_callers_are_not_known_they_share_all_places():
    assert filled(to_wait(1024, callers_are_known=False), "anyone") == 1008


def test_a_place_that_was_left_is_anothers():
    places = to_wait(4, callers_are_known=True)
    alice, bob = seats("alice"), seats("bob")
    with places.taken(*alice) as first, places.taken(*alice) as second, places.taken(*bob) as third:
        assert (first, second, third) == (True, True, False)
    assert places.take(*bob)
    assert filled(places, "bob") == 1
    places.leave(*bob)
    assert filled(places, "bob") == 1


def test_the_smallest_process_lets_somebody_wait():
    assert filled(to_wait(1, callers_are_known=True), "alice") == 1
