"""A claim is held while its work runs, told as lost at the next step, and given up when the work ends."""

import pytest

from app.errors import ClaimLost, Internal
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
    assert jobs.claim(new.task_id, "t1", "worker-1", 3).verdict == "claimed"
    return new.task_id


def end_of(services, task_id):
    return services.redis.zscore("jobs:leases", task_id)


def test_a_lease_is_renewed_again_and_again_without_a_step(services, jobs, claimed):
    jobs, first = JobStore(services.redis, result_ttl=60, lease=1), end_of(services, claimed)
    jobs.renew(claimed, "t1")

    def outlived_itself():
        assert jobs.claim(claimed, "t2", "worker-2", 3).verdict == "held"
        return end_of(services, claimed) > first + 2

    with Lease(jobs, claimed, "t1", 1):
        until(outlived_itself, 10, "the lease outlives itself")


def test_a_lease_ends_with_its_work(services, jobs, claimed):
    with Lease(jobs, claimed, "t1", SECONDS) as lease:
        pass
    lease._thread.join(10)
    assert not lease._thread.is_alive()
    assert until(lambda: jobs.requeue(claimed), 10, "the lease runs out")


def test_a_step_tells_how_far_the_work_is(jobs, claimed):
    with Lease(jobs, claimed, "t1", SECONDS) as lease:
        lease.advance(Phase.RUNNING)
        lease.step(2, 8)
    assert (jobs.get(claimed).phase, jobs.get(claimed).step, jobs.get(claimed).steps) == (Phase.RUNNING, 2, 8)


def test_a_lost_claim_stops_the_work_at_its_next_step(services, jobs, claimed):
    with Lease(jobs, claimed, "t1", 1000) as lease:
        lease_runs_out(services.redis, claimed)
        assert jobs.claim(claimed, "t2", "worker-2", 3).verdict == "claimed"
        with pytest.raises(ClaimLost):
            lease.step(1, 8)
        with pytest.raises(ClaimLost):
            lease.advance(Phase.RUNNING)


def test_a_claim_that_the_thread_saw_lost_needs_no_store_to_stop_the_work(services, jobs, claimed):
    with Lease(jobs, claimed, "t1", SECONDS) as lease:
        jobs.fail(claimed, Internal("over"))
        until(lease._lost.is_set, 10, "the thread sees it")
        lease._jobs = None
        with pytest.raises(ClaimLost):
            lease.step(1, 8)


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
