"""Several workers, a courier and a web tier move jobs in any order: what must hold holds after each move."""

import itertools
from contextlib import suppress

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis import Redis

from app.errors import ClaimLost, DeadlineExceeded, Internal, InvalidTransition, TaskNotFound
from app.jobs import JobStore
from app.record import Phase, Status
from tests.things import deadline_passes, job, lease_runs_out

MAX_ATTEMPTS = 3
WORKERS = st.sampled_from(["ann", "bob", "eve"])
INDEXES = ("uploads", "unconfirmed", "queued:gen.tiny", "leases", "deadlines")
RUNNING = (Phase.STARTING, Phase.RUNNING, Phase.UPLOADING)


class Jobs(RuleBasedStateMachine):
    """A few jobs; each worker remembers the last token that it was given for each."""

    ids = Bundle("ids")

    def __init__(self, redis_url):
        super().__init__()
        self.redis = Redis.from_url(redis_url, decode_responses=True)
        self.redis.flushdb()
        self.jobs = JobStore(self.redis, result_ttl=60, lease=100)
        self.tokens = {}
        self.succeeded = {}
        self.created = []
        self.numbers = itertools.count()

    def teardown(self):
        self.redis.close()

    def record(self, task_id):
        return self.redis.hgetall(f"job:{task_id}")

    @rule(target=ids, waits=st.booleans(), priority=st.sampled_from(["normal", "low"]))
    def create(self, waits, priority):
        new = job(waits=waits, task_id=f"job-{next(self.numbers)}", priority=priority)
        assert self.jobs.create(new)
        self.created.append(new.task_id)
        return new.task_id

    @rule(task_id=ids)
    def upload(self, task_id):
        self.jobs.queue(task_id)

    @rule(task_id=ids)
    def confirm(self, task_id):
        self.jobs.confirm(task_id)

    @rule(task_id=ids)
    def discard(self, task_id):
        self.jobs.discard(task_id)

    @rule(task_id=ids)
    def lease_runs_out(self, task_id):
        if self.record(task_id)["phase"] in RUNNING:
            lease_runs_out(self.redis, task_id)

    @rule(task_id=ids)
    def deadline_passes(self, task_id):
        if self.record(task_id)["phase"] != Phase.DONE:
            deadline_passes(self.redis, task_id)

    @rule(task_id=ids, worker=WORKERS)
    def claim(self, task_id, worker):
        held = self.redis.zscore("jobs:leases", task_id)
        live = held is not None and held > self.jobs.now()
        token = f"{worker}-{next(self.numbers)}"
        answer = self.jobs.claim(task_id, token, worker)
        if answer.verdict == "claimed":
            assert not live
            self.tokens[worker, task_id] = token

    @rule(worker=WORKERS)
    def claim_next(self, worker):
        first = self.redis.zrange("jobs:queued:gen.tiny", 0, 0)
        token = f"{worker}-{next(self.numbers)}"
        answers = [self.jobs.claim_next("gen.tiny", 4, ["tiny-scenes-1"], token, worker) for _ in range(2)]
        assert [answer.task_id for answer in answers] == 2 * (first or [""])
        assert answers[0].verdict == answers[1].verdict
        if answers[0].verdict == "claimed":
            self.tokens[worker, first[0]] = token

    @rule(task_id=ids, worker=WORKERS, phase=st.sampled_from([Phase.RUNNING, Phase.UPLOADING]))
    def advance(self, task_id, worker, phase):
        with suppress(ClaimLost, InvalidTransition):
            self.jobs.advance(task_id, self.tokens.get((worker, task_id), "none"), phase)

    @rule(task_id=ids, worker=WORKERS)
    def release(self, task_id, worker):
        with suppress(ClaimLost):
            self.jobs.release(task_id, self.tokens.get((worker, task_id), "none"))

    @rule(task_id=ids, worker=WORKERS)
    def succeed(self, task_id, worker):
        with suppress(ClaimLost):
            self.jobs.succeed(task_id, self.tokens.get((worker, task_id), "none"), {"worker_version": worker})
            assert self.record(task_id)["status"] == Status.SUCCEEDED

    @rule(task_id=ids, worker=WORKERS)
    def fail(self, task_id, worker):
        with suppress(ClaimLost):
            self.jobs.fail(task_id, Internal("over"), self.tokens.get((worker, task_id), "none"))
            assert self.record(task_id)["status"] == Status.FAILED

    @rule(task_id=ids)
    def end_over_the_owners_head(self, task_id):
        with suppress(ClaimLost):
            self.jobs.fail(task_id, DeadlineExceeded("over"))

    @rule()
    def sweep(self):
        for task_id in self.jobs.due("leases"):
            self.jobs.requeue(task_id)

    @rule(task_id=ids)
    def at_most_one_worker_holds_the_job(self, task_id):
        holders = []
        for (worker, held), token in self.tokens.items():
            if held == task_id:
                with suppress(ClaimLost):
                    self.jobs.renew(task_id, token)
                    holders.append(worker)
        assert len(holders) == (self.record(task_id)["phase"] in RUNNING)

    @invariant()
    def what_succeeded_never_changes(self):
        for task_id in self.created:
            record = self.record(task_id)
            if record.get("status") == Status.SUCCEEDED or task_id in self.succeeded:
                assert self.succeeded.setdefault(task_id, record) == record

    @invariant()
    def no_job_costs_more_workers_than_allowed(self):
        for task_id in self.created:
            assert 0 <= int(self.record(task_id).get("attempt", 0)) <= MAX_ATTEMPTS

    @invariant()
    def indexes_agree_with_the_records(self):
        expected = {
            Phase.AWAITING_UPLOAD: {"uploads", "deadlines"},
            Phase.QUEUED: {"queued:gen.tiny", "deadlines"},
            **{phase: {"leases", "deadlines"} for phase in RUNNING},
            Phase.DONE: set(),
        }
        with self.redis.pipeline() as pipe:
            for name in INDEXES:
                pipe.zrange(f"jobs:{name}", 0, -1)
            held = dict(zip(INDEXES, map(set, pipe.execute()), strict=True))
        for task_id in self.created:
            phase = Phase(self.record(task_id)["phase"])
            free = {"unconfirmed"} if phase is Phase.QUEUED else set()
            assert {name for name in INDEXES if task_id in held[name]} - free == expected[phase]

    @invariant()
    def no_normal_job_stands_behind_a_low_one(self):
        line = [waiting.params.priority for waiting in self.jobs.line("gen.tiny", 1000)]
        assert line == sorted(line, key=["normal", "low"].index)

    @invariant()
    def a_job_is_done_when_it_has_its_end(self):
        for task_id in self.created:
            with suppress(TaskNotFound):
                stored = self.jobs.get(task_id)
                assert (stored.status is not Status.PENDING) == stored.phase.is_terminal


def test_jobs_survive_workers_couriers_and_clients_in_any_order(redis_url):
    patient = settings(
        max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(lambda: Jobs(redis_url), settings=patient)
