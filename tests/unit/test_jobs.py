"""Every move of jobs.lua, allowed and refused."""

import dataclasses
import json
from contextlib import suppress
from itertools import product

import pytest

from app.errors import (
    ClaimLost,
    DeadlineExceeded,
    Internal,
    InvalidTransition,
    TaskExpired,
    TaskNotFound,
)
from app.jobs import JobStore
from app.record import TRANSITIONS, Job, Phase, Status
from tests.stack import until
from tests.things import RESULT, claim, deadline_passes, indexes, job, lease_runs_out, of_a_newer_version, reach

# Every call that leads to a phase.
WAYS = {
    Phase.AWAITING_UPLOAD: [lambda jobs, i: jobs.advance(i, "t1", Phase.AWAITING_UPLOAD)],
    Phase.QUEUED: [lambda jobs, i: jobs.queue(i), lambda jobs, i: jobs.release(i, "t1")],
    Phase.STARTING: [lambda jobs, i: claim(jobs, i, "t2"), lambda jobs, i: jobs.advance(i, "t1", Phase.STARTING)],
    Phase.RUNNING: [lambda jobs, i: jobs.advance(i, "t1", Phase.RUNNING)],
    Phase.UPLOADING: [lambda jobs, i: jobs.advance(i, "t1", Phase.UPLOADING)],
    Phase.DONE: [lambda jobs, i: jobs.fail(i, Internal("over"))],
}
PAIRS = [(old, new) for old, new in product(Phase, Phase) if old is not new]


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_job_moves_exactly_as_the_table_of_transitions_says(jobs, old, new):
    task_id = reach(jobs, old)
    for way in WAYS[new]:
        with suppress(ClaimLost, InvalidTransition):
            way(jobs, task_id)
        if jobs.get(task_id).phase is not old:
            break
    assert jobs.get(task_id).phase is (new if new in TRANSITIONS[old] else old)


def test_a_move_that_the_table_does_not_hold_is_a_mistake_and_says_so(jobs):
    with pytest.raises(InvalidTransition, match="STARTING"):
        jobs.advance(reach(jobs, Phase.STARTING), "t1", Phase.UPLOADING)


def test_only_the_last_phase_is_terminal_and_it_leads_nowhere():
    assert [phase for phase in Phase if phase.is_terminal] == [Phase.DONE]
    assert TRANSITIONS[Phase.DONE] == frozenset()
    assert set(TRANSITIONS) == set(Phase)


def test_a_record_holds_everything_that_the_job_said(jobs):
    new = job(prompt="où est 🦊?", client_ref="mine", deadline_seconds=60, max_attempts=2)
    assert jobs.create(new)
    stored = jobs.get(new.task_id)
    assert (stored.params, stored.queue, stored.client_ref) == (new.params, new.queue, "mine")
    assert (stored.phase, stored.status, stored.attempt, stored.max_attempts) == (Phase.QUEUED, Status.PENDING, 0, 2)
    assert stored.deadline_at == pytest.approx(stored.created_at + 60, abs=0.01)


def test_a_message_makes_the_same_job_again():
    new = job(prompt="où est 🦊?", client_ref="mine", deadline_seconds=60, input_url="file:///x/input/1")
    assert Job.from_message(json.loads(json.dumps(new.message()))) == new


def test_a_record_made_again_from_its_message_keeps_its_deadline(jobs):
    new = job(deadline_seconds=3600, deadline_at=jobs.now() + 60)
    assert jobs.create(new).verdict == "created"
    assert jobs.get(new.task_id).deadline_at == pytest.approx(new.deadline_at, abs=0.01)


def test_a_message_that_outlives_its_deadline_makes_nothing_again(jobs, redis):
    late = job(deadline_at=jobs.now() - 1)
    assert jobs.create(late).verdict == "overdue"
    assert list(redis.scan_iter("job*")) == []


NEWER = [{"mood": "calm"}, {"priority": "urgent"}]


@pytest.mark.parametrize("more", NEWER)
def test_a_job_of_a_newer_version_can_be_looked_at(jobs, redis, more):
    task_id = reach(jobs, Phase.QUEUED)
    of_a_newer_version(redis, task_id, **more)
    assert jobs.get(task_id).is_newer
    shown = jobs.get(task_id).params
    assert (shown.prompt, shown.width, shown.num_images) == (job().params.prompt, job().params.width, 1)


@pytest.mark.parametrize("more", NEWER)
def test_a_job_of_a_newer_version_is_left_in_line_for_its_workers(jobs, redis, more):
    newer, other = reach(jobs, Phase.QUEUED), reach(jobs, Phase.QUEUED)
    of_a_newer_version(redis, newer, **more)
    assert claim(jobs, newer).verdict == "held"
    assert jobs.claim_next("gen.tiny", 4, ["tiny-scenes-1"], "t2", "worker-1").verdict in ("claimed", "held")
    left = jobs.get(newer)
    assert (left.phase, left.attempt, jobs.standing(left).position) == (Phase.QUEUED, 0, 0)
    assert jobs.get(other).attempt == (1 if "mood" in more else 0), "unknown names are passed over"


def test_a_job_whose_record_is_damaged_keeps_nobody_else_from_their_turn(jobs, redis):
    damaged, other = reach(jobs, Phase.QUEUED), reach(jobs, Phase.QUEUED)
    redis.hset(f"job:{damaged}", "params", "{no JSON")
    assert jobs.claim_next("gen.tiny", 4, ["tiny-scenes-1"], "t1", "worker-1").task_id == other


def test_an_id_is_taken_once(jobs):
    new = job()
    assert jobs.create(new)
    assert jobs.create(dataclasses.replace(new, queue="other")).verdict == "exists"
    assert jobs.get(new.task_id).queue == new.queue


def test_an_unknown_id_is_not_found(jobs):
    with pytest.raises(TaskNotFound):
        jobs.get("nothing")


def test_a_task_whose_keeping_is_over_is_told_as_expired(services):
    jobs = JobStore(services.redis, result_ttl=0, lease=15)
    new = job()
    jobs.create(new)
    jobs.fail(new.task_id, Internal("over"))
    # Times on the record are rounded to milliseconds.
    end = jobs.now() + 0.001
    until(lambda: jobs.now() > end, 5, "its time is over")
    with pytest.raises(TaskExpired):
        jobs.get(new.task_id)


def test_a_finished_record_leaves_redis_a_day_after_its_result(jobs, redis, settings):
    task_id = reach(jobs, Phase.DONE)
    assert redis.ttl(f"job:{task_id}") == pytest.approx(settings.result_ttl + 86400, abs=5)
    assert jobs.get(task_id).expires_at == pytest.approx(jobs.now() + settings.result_ttl, abs=5)


def test_a_job_that_is_not_done_never_leaves_redis(jobs, redis):
    assert [redis.ttl(f"job:{reach(jobs, p)}") for p in Phase if not p.is_terminal] == [-1] * 5


def test_a_claim_names_owner_attempt_and_lease(jobs, redis):
    task_id = reach(jobs, Phase.QUEUED)
    answer = claim(jobs, task_id)
    assert (answer.verdict, answer.job.attempt, answer.job.phase) == ("claimed", 1, Phase.STARTING)
    assert answer.job.attempts[0]["owner"] == "worker-1"
    assert redis.zscore("jobs:leases", task_id) == pytest.approx(jobs.now() + 15, abs=1)


def test_a_second_worker_cannot_claim_a_job_whose_lease_is_live(jobs):
    task_id = reach(jobs, Phase.RUNNING)
    assert claim(jobs, task_id, "t2", "worker-2").verdict == "held"
    jobs.renew(task_id, "t1")
    assert jobs.get(task_id).attempt == 1


def test_a_second_worker_takes_over_when_the_lease_has_run_out(services):
    jobs = JobStore(services.redis, result_ttl=60, lease=0.05)
    task_id = reach(jobs, Phase.STARTING)
    taken = until(lambda: claim(services.jobs, task_id, "t2", "worker-2").job, 5, "the lease runs out")
    assert (taken.attempt, taken.attempts[0]["ended"]) == (2, "worker_lost")
    with pytest.raises(ClaimLost):
        jobs.renew(task_id, "t1")


def test_a_worker_that_asks_again_after_a_lost_answer_has_its_claim_once(jobs):
    task_id = reach(jobs, Phase.QUEUED)
    first, again = claim(jobs, task_id), claim(jobs, task_id)
    assert again.verdict == "claimed"
    assert first.job.attempt == again.job.attempt == 1


@pytest.mark.parametrize(
    ("phase", "verdict"), [(Phase.AWAITING_UPLOAD, "waiting"), (Phase.DONE, "done"), (Phase.RUNNING, "held")]
)
def test_a_job_that_is_not_queued_cannot_be_claimed(jobs, phase, verdict):
    answer = claim(jobs, reach(jobs, phase), "t2")
    assert (answer.verdict, answer.job) == (verdict, None)


def test_a_job_without_a_record_is_missing(jobs):
    assert claim(jobs, "nothing").verdict == "missing"


def test_a_job_past_its_deadline_cannot_be_claimed(jobs, redis):
    task_id = reach(jobs, Phase.QUEUED)
    deadline_passes(redis, task_id)
    assert claim(jobs, task_id).verdict == "overdue"
    assert jobs.get(task_id).phase is Phase.QUEUED


@pytest.mark.parametrize("most", [1, 3])
def test_a_job_cannot_be_claimed_after_as_many_attempts_as_it_was_accepted_with(jobs, redis, most):
    task_id = reach(jobs, Phase.QUEUED, max_attempts=most)
    for attempt in range(most):
        assert claim(jobs, task_id, f"t{attempt}").verdict == "claimed"
        lease_runs_out(redis, task_id)
    assert claim(jobs, task_id, "t4").verdict == "exhausted"
    assert jobs.get(task_id).attempt == most


def test_a_released_attempt_is_not_counted(jobs):
    task_id = reach(jobs, Phase.RUNNING)
    jobs.release(task_id, "t1")
    stored = jobs.get(task_id)
    assert (stored.phase, stored.attempt, stored.attempts[0]["ended"]) == (Phase.QUEUED, 0, "released")
    assert claim(jobs, task_id, "t2").job.attempt == 1


def test_a_lost_attempt_is_counted(jobs, redis):
    task_id = reach(jobs, Phase.RUNNING)
    lease_runs_out(redis, task_id)
    assert jobs.requeue(task_id)
    assert jobs.get(task_id).attempts[0]["ended"] == "worker_lost"
    assert claim(jobs, task_id, "t2").job.attempt == 2


def test_a_live_lease_is_not_taken_away(jobs):
    task_id = reach(jobs, Phase.RUNNING)
    assert not jobs.requeue(task_id)
    assert jobs.get(task_id).phase is Phase.RUNNING


def test_one_caller_alone_learns_that_it_took_the_job_back(jobs, redis):
    task_id = reach(jobs, Phase.RUNNING)
    lease_runs_out(redis, task_id)
    assert [jobs.requeue(task_id), jobs.requeue(task_id)] == [True, False]


def test_one_caller_alone_learns_that_it_queued_the_job(jobs):
    task_id = reach(jobs, Phase.AWAITING_UPLOAD)
    assert [jobs.queue(task_id), jobs.queue(task_id)] == [True, False]


def test_a_step_renews_the_lease_and_tells_how_far_the_work_is(jobs, redis):
    task_id = reach(jobs, Phase.RUNNING)
    lease_runs_out(redis, task_id)
    jobs.renew(task_id, "t1", 3, 20)
    stored = jobs.get(task_id)
    assert (stored.step, stored.steps) == (3, 20)
    assert jobs.due("leases") == []


def test_the_progress_of_a_lost_attempt_is_forgotten(jobs, redis):
    task_id = reach(jobs, Phase.RUNNING)
    jobs.renew(task_id, "t1", 3, 20)
    lease_runs_out(redis, task_id)
    assert claim(jobs, task_id, "t2").job.step == 0


@pytest.mark.parametrize("token", ["t2", "none", ""])
@pytest.mark.parametrize(
    "move",
    [
        lambda jobs, i, token: jobs.renew(i, token),
        lambda jobs, i, token: jobs.advance(i, token, Phase.UPLOADING),
        lambda jobs, i, token: jobs.release(i, token),
    ],
    ids=["renew", "advance", "release"],
)
def test_without_the_current_token_nothing_moves(jobs, move, token):
    task_id = reach(jobs, Phase.RUNNING)
    before = jobs.get(task_id)
    with pytest.raises(ClaimLost):
        move(jobs, task_id, token)
    assert jobs.get(task_id) == before


@pytest.mark.parametrize("phase", [Phase.AWAITING_UPLOAD, Phase.QUEUED])
def test_the_token_of_a_job_that_nobody_holds_opens_nothing(jobs, phase):
    task_id = reach(jobs, phase)
    with pytest.raises(ClaimLost):
        jobs.succeed(task_id, "none", RESULT)
    assert jobs.get(task_id).status is Status.PENDING


def test_a_worker_that_was_given_up_on_cannot_overwrite_the_other_result(jobs, redis):
    task_id = reach(jobs, Phase.UPLOADING)
    lease_runs_out(redis, task_id)
    claim(jobs, task_id, "t2")
    with pytest.raises(ClaimLost):
        jobs.succeed(task_id, "t1", {**RESULT, "worker_version": "slow"})
    jobs.succeed(task_id, "t2", RESULT)
    with pytest.raises(ClaimLost):
        jobs.fail(task_id, Internal("late"), "t1")
    assert (jobs.get(task_id).status, jobs.get(task_id).worker_version) == (Status.SUCCEEDED, "1")


def test_a_worker_that_says_its_phase_again_after_a_lost_answer_is_told_that_it_was_heard(jobs):
    task_id = reach(jobs, Phase.RUNNING)
    before = jobs.get(task_id)
    jobs.advance(task_id, "t1", Phase.RUNNING)
    assert jobs.get(task_id) == before


def test_a_worker_that_says_the_end_again_after_a_lost_answer_is_told_that_it_was_heard(jobs):
    task_id = reach(jobs, Phase.DONE)
    before = jobs.get(task_id)
    jobs.succeed(task_id, "t1", {**RESULT, "worker_version": "2"})
    assert jobs.get(task_id) == before


def test_a_worker_whose_job_was_ended_over_its_head_is_told_that_its_result_was_not_taken(jobs):
    task_id = reach(jobs, Phase.UPLOADING)
    jobs.fail(task_id, DeadlineExceeded("too late"))
    with pytest.raises(ClaimLost):
        jobs.succeed(task_id, "t1", RESULT)
    with pytest.raises(ClaimLost):
        jobs.fail(task_id, Internal("over"), "t1")
    assert jobs.get(task_id).error["code"] == "deadline_exceeded"


def test_a_worker_that_said_the_end_cannot_say_another(jobs):
    task_id = reach(jobs, Phase.DONE)
    with pytest.raises(ClaimLost):
        jobs.fail(task_id, Internal("late"), "t1")
    assert jobs.get(task_id).status is Status.SUCCEEDED


@pytest.mark.parametrize("phase", [phase for phase in Phase if not phase.is_terminal])
def test_a_job_can_be_ended_over_its_owners_head_in_every_phase(jobs, redis, phase):
    task_id = reach(jobs, phase)
    jobs.fail(task_id, DeadlineExceeded("too late"))
    stored = jobs.get(task_id)
    assert (stored.status, stored.phase, stored.finished_at > 0) == (Status.FAILED, Phase.DONE, True)
    assert stored.error == {"code": "deadline_exceeded", "message": "too late", "retryable": True}
    assert indexes(redis, task_id) == set()


def test_the_first_end_is_the_end(jobs):
    task_id = reach(jobs, Phase.DONE)
    with pytest.raises(ClaimLost):
        jobs.fail(task_id, Internal("late"))
    assert jobs.get(task_id).error is None


def test_a_job_without_a_record_cannot_be_ended(jobs, redis):
    with pytest.raises(ClaimLost):
        jobs.fail("nothing", Internal("over"))
    assert not redis.exists("job:nothing")
