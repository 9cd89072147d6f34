"""A claim is held while its work runs, told as lost at the next step, and given up when the work ends."""

import threading

import pytest
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from app import lease
from app.errors import Canceled, ClaimLost, Internal
from app.jobs import JobStore
from app.lease import Lease
from app.record import Phase
from tests.stack import until
from tests.things import job, lease_runs_out

SECONDS = 0.3


@pytest.fixture
def jobs(services):
    return JobStore(services.redis, result_ttl=60, lease=SECONDS)


@pytest.fixture
def claimed(jobs):
    new = job()
    jobs.create(new)
    assert jobs.claim(new.task_id, "t1", "worker-1").verdict == "claimed"
    return new.task_id


@pytest.fixture
def unasked(monkeypatch):
    """No lease looks after itself: what is told is told because something was said."""
    monkeypatch.setattr(lease, "LISTEN", 1000)


def end_of(services, task_id):
    return services.redis.zscore("jobs:leases", task_id)


def test_a_lease_is_renewed_again_and_again_without_a_step(services, jobs, claimed, unasked):
    jobs, first = JobStore(services.redis, result_ttl=60, lease=2), end_of(services, claimed)
    jobs.renew(claimed, "t1")

    def outlived_itself():
        assert jobs.claim(claimed, "t2", "worker-2").verdict == "held"
        return end_of(services, claimed) > first + 4

    with Lease(jobs, claimed, "t1", 2):
        until(outlived_itself, 10, "the lease outlives itself")


def test_a_lease_ends_with_its_work(services, jobs, claimed):
    with Lease(jobs, claimed, "t1", SECONDS) as held:
        pass
    held._thread.join(10)
    assert not held._thread.is_alive()
    assert until(lambda: jobs.requeue(claimed), 10, "the lease runs out")


def test_a_lease_that_has_ended_is_not_renewed_once_more(services, jobs, claimed, unasked):
    last = end_of(services, claimed)
    with Lease(jobs, claimed, "t1", 1000) as ended:
        pass
    ended._thread.join(10)
    assert end_of(services, claimed) == last


def test_a_sign_of_life_is_no_step_of_a_trace(jobs, claimed, monkeypatch):
    renew, traced = jobs.renew, []
    monkeypatch.setattr(jobs, "renew", lambda *told: traced.append(is_instrumentation_enabled()) or renew(*told))
    with Lease(jobs, claimed, "t1", SECONDS):
        until(lambda: traced, 10, "a sign of life")
    assert not any(traced)


def test_who_follows_is_told_that_the_model_works_and_how_far_it_is(jobs, claimed, unasked):
    def stored():
        found = jobs.get(claimed)
        return found.phase, found.step, found.steps

    with Lease(jobs, claimed, "t1", 1000) as held:
        held.begin()
        until(lambda: stored() == (Phase.RUNNING, 0, None), 10, "the beginning is told")
        held.step(2, 8)
        until(lambda: stored() == (Phase.RUNNING, 2, 8), 10, "the step is told")


def test_the_next_phase_begins_when_all_that_was_said_is_told(jobs, claimed):
    with Lease(jobs, claimed, "t1", 1000) as held:
        held.begin()
        held.step(8, 8)
        held.advance(Phase.UPLOADING)
        assert (jobs.get(claimed).phase, jobs.get(claimed).step) == (Phase.UPLOADING, 8)


def test_a_lost_claim_stops_the_work_at_a_step_soon_after(services, jobs, claimed):
    with Lease(jobs, claimed, "t1", 1000) as held:
        lease_runs_out(services.redis, claimed)
        assert jobs.claim(claimed, "t2", "worker-2").verdict == "claimed"
        assert until(lambda: refused(held) is ClaimLost, 10, "the work is stopped")
        with pytest.raises(ClaimLost):
            held.advance(Phase.UPLOADING)


def test_a_canceled_job_is_stopped_without_a_word_from_its_model_about_steps(jobs, claimed):
    with Lease(jobs, claimed, "t1", 1000) as held:
        jobs.cancel(claimed)
        until(lambda: held._refusal, 10, "the thread hears it")
        with pytest.raises(Canceled):
            held.begin()
        with pytest.raises(Canceled):
            held.check()


def test_a_job_canceled_at_its_last_step_goes_no_further(jobs, claimed):
    with Lease(jobs, claimed, "t1", 1000) as held:
        held.begin()
        jobs.cancel(claimed)
        # Its thread may have heard of it by the step already.
        with pytest.raises(Canceled):  # noqa: PT012
            held.step(8, 8)
            held.advance(Phase.UPLOADING)


def test_a_refusal_that_the_thread_heard_needs_no_store_to_stop_the_work(jobs, claimed):
    with Lease(jobs, claimed, "t1", SECONDS) as held:
        jobs.fail(claimed, Internal("over"))
        until(lambda: held._refusal, 10, "the thread hears it")
        held._jobs = None
        with pytest.raises(ClaimLost):
            held.step(1, 8)


def test_the_work_goes_on_while_the_store_does_not_answer(jobs, claimed):
    away, asked = threading.Event(), threading.Event()

    class Hanging:
        """A store that answers nothing until it is back."""

        def advance(self, *args):
            asked.set()
            assert away.wait(30)
            jobs.advance(*args)

        renew = staticmethod(jobs.renew)

    with Lease(Hanging(), claimed, "t1", 1000) as held:
        held.begin()
        assert asked.wait(10)
        for step in (1, 2, 3):
            held.step(step, 3)
        away.set()
        until(lambda: jobs.get(claimed).step == 3, 10, "what was said last is told")


def refused(held):
    try:
        held.step(1, 8)
    except (Canceled, ClaimLost) as refusal:
        return type(refusal)
    return None


def test_an_outage_of_the_store_does_not_end_the_renewing(services, jobs, claimed):
    from app.errors import StoreUnavailable

    class Shaky:
        """A store that is away for the first two renewals."""

        calls = 0

        def renew(self, *args):
            Shaky.calls += 1
            if Shaky.calls < 3:
                raise StoreUnavailable
            jobs.renew(*args)

    first = end_of(services, claimed)
    with Lease(Shaky(), claimed, "t1", SECONDS / 10):
        until(lambda: end_of(services, claimed) > first, 10, "the lease is renewed after the outage")
    assert Shaky.calls >= 3
