"""Many deliveries: couriers never make one at once, and neither a host nor a caller takes all the places."""

import threading

import pytest

from app.egress import Answer
from app.errors import StoreUnavailable
from app.webhooks import BATCH, MARGIN, MAX_TRIES, POLL_SECONDS, SHARES, Dispatcher
from tests.stack import until
from tests.unit.webhooks.deliveries import Recorder, deliver, entries, time_passes


def test_two_couriers_never_have_the_same_entry(ended, outbox):
    entry = f"{ended()}.completed"
    start, claims = threading.Barrier(8), []

    def claim():
        start.wait(10)
        claims.append(outbox.claim(entry))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len([claim for claim in claims if claim]) == 1


def test_what_a_dead_courier_held_is_delivered_by_the_next_once_its_lease_is_over(services, ended, outbox):
    task_id = ended()
    held = outbox.claim(f"{task_id}.completed")
    assert deliver(services) == []
    assert entries(services)[held.entry] > services.jobs.now() + 10
    time_passes(services)
    assert len(deliver(services)) == 1
    assert not outbox.settle(held, 500, None, 1), "too late: another has delivered it"
    assert entries(services) == {}
    assert len(services.jobs.get(task_id).deliveries) == 1


def test_a_courier_that_dies_each_time_does_not_try_for_ever(services, ended, outbox):
    entry = f"{ended()}.completed"
    for _ in range(MAX_TRIES):
        assert outbox.claim(entry)
        time_passes(services)
    assert outbox.claim(entry) is None
    assert entries(services) == {}


class Slow(Recorder):
    """Where it is called slow it answers when it is released, elsewhere at once."""

    def __init__(self):
        super().__init__()
        self.released = threading.Event()

    def post(self, url, *_):
        self.sent.append(url)
        if "slow" in url:
            self.released.wait(20)
        return Answer(204)


@pytest.fixture
def receiver():
    """A slow one."""
    receiver = Slow()
    yield receiver
    receiver.released.set()


def test_one_host_takes_only_its_share_and_the_others_go_on(services, ended, receiver):
    slow = [ended("https://slow.example/", caller=f"c{n}") for n in range(SHARES["host"] + 3)]
    ended("https://quick.example/")
    dispatcher, before = Dispatcher(services, receiver), services.jobs.now()
    dispatcher.dispatch()
    until(lambda: len(receiver.sent) == SHARES["host"] + 1, 10, "all that may be sent is")
    assert "https://quick.example/" in receiver.sent
    assert min(entries(services).values()) > before + POLL_SECONDS / 2, "others wait"
    receiver.released.set()
    until(lambda: len(entries(services)) == 3, 10, "the slow ones are done")
    time_passes(services)
    dispatcher.dispatch()
    dispatcher.close()
    assert len(receiver.sent) == len(slow) + 1
    assert entries(services) == {}


def test_however_many_wait_for_a_slow_host_others_are_not_held_up(services, ended, receiver):
    for n in range(BATCH + SHARES["host"]):
        ended("https://slow.example/", caller=f"c{n}")
    ended("https://quick.example/")
    dispatcher = Dispatcher(services, receiver)
    dispatcher.dispatch()
    until(lambda: "https://quick.example/" in receiver.sent, 10, "the quick one has it in the same round")
    receiver.released.set()
    dispatcher.close()


def test_the_more_wait_for_a_slow_host_the_less_often_each_is_looked_at(services, ended, receiver):
    for n in range(SHARES["host"] * 5):
        ended("https://slow.example/", caller=f"c{n}")
    dispatcher = Dispatcher(services, receiver)
    dispatcher.dispatch()
    receiver.released.set()
    dispatcher.close()
    due = sorted(entries(services).values())
    assert len(due) == SHARES["host"] * 4
    # As many as have places at each look.
    assert 3 * POLL_SECONDS <= due[-1] - due[0] < 6 * POLL_SECONDS


def test_while_all_places_are_taken_no_more_is_read_of_what_waits(services, ended, receiver, monkeypatch):
    for n in range(BATCH + SHARES["all"]):
        ended(f"https://slow{n}.example/", caller=f"c{n}")
    dispatcher, looks = Dispatcher(services, receiver), []
    read = dispatcher._outbox.due
    monkeypatch.setattr(dispatcher._outbox, "due", lambda: looks.append(1) or read())
    dispatcher.dispatch()
    assert len(looks) == 1
    receiver.released.set()
    dispatcher.close()


def test_who_looked_before_another_tried_does_not_bring_the_next_try_forward(services, ended, outbox):
    entry = f"{ended()}.completed"
    assert outbox.due() == [entry]
    claim = outbox.claim(entry)
    assert outbox.settle(claim, 500, "status 500", 3600)
    before = entries(services)
    outbox.postpone({entry: POLL_SECONDS})
    assert entries(services) == before


def test_one_caller_does_not_take_all(services, ended, receiver):
    for n in range(SHARES["caller"] + 2):
        ended(f"https://slow{n}.example/", caller="greedy")
    ended("https://other.example/", caller="other")
    dispatcher = Dispatcher(services, receiver)
    dispatcher.dispatch()
    until(lambda: len(receiver.sent) == SHARES["caller"] + 1, 10, "all that may be sent is")
    assert "https://other.example/" in receiver.sent
    receiver.released.set()
    dispatcher.close()
    assert len(entries(services)) == 2, "two wait for their turn"


def test_a_request_is_over_well_before_the_lease_of_its_entry(services, ended):
    spare = []

    class Noting(Recorder):
        def post(self, url, body, headers, seconds):
            [lease] = entries(services).values()
            spare.append(lease - services.jobs.now() - seconds)
            return Answer(204)

    ended()
    dispatcher = Dispatcher(services, Noting())
    dispatcher.dispatch()
    dispatcher.close()
    assert spare == [pytest.approx(MARGIN, abs=1)]


def test_a_store_that_takes_no_writes_for_a_while_keeps_no_seats(services, ended, request):
    ended()
    has_memory_again = request.getfixturevalue("full")
    receiver = Recorder()
    dispatcher = Dispatcher(services, receiver)
    for _ in range(SHARES["all"] + 1):
        with pytest.raises(StoreUnavailable):
            dispatcher.dispatch()
    has_memory_again()
    dispatcher.dispatch()
    dispatcher.close()
    assert len(receiver.sent) == 1


def test_a_redelivery_during_a_delivery_does_not_make_two_at_once(services, ended, outbox):
    task_id = ended()
    claim = outbox.claim(f"{task_id}.completed")
    outbox.redeliver(services.jobs.get(task_id))
    assert deliver(services) == []
    assert outbox.settle(claim, 500, "status 500", 1)


def test_putting_off_what_another_has_just_taken_changes_nothing(services, ended, outbox):
    claim = outbox.claim(f"{ended()}.completed")
    before = entries(services)
    outbox.postpone({claim.entry: 1})
    assert entries(services) == before


def test_a_courier_whose_list_is_old_neither_takes_nor_puts_off_what_another_has_delivered(services, ended, outbox):
    entry = f"{ended()}.completed"
    assert outbox.due() == [entry]
    deliver(services)
    assert outbox.claim(entry) is None
    outbox.postpone({entry: 1})
    assert entries(services) == {}
