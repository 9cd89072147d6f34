"""Jobs, requests and pictures as the tests need them."""

import dataclasses
import io
import json
import uuid

from PIL import Image

from app.callers import ANYONE
from app.generate import Runner
from app.intake import input_name
from app.line import Line
from app.params import Params
from app.quarantine import Quarantine
from app.record import Job, Phase
from app.schemas import GenerateRequest
from app.services import build
from tests.stack import until

PARAMS = {
    "prompt": "a red star over the sea",
    "negative_prompt": "",
    "model_version": "tiny-scenes-1",
    "width": 64,
    "height": 64,
    "num_inference_steps": 4,
    "guidance_scale": 5.0,
    "strength": 0.7,
    "seed": 42,
    "num_images": 1,
    "output_format": "png",
}


class Letters:
    """A broker's dead letters, without a broker."""

    def __init__(self, *letters):
        self.letters, self.fetched, self.sent = list(letters), [], []

    def dead_letters(self, limit):
        while self.letters and limit:
            self.fetched.append(self.letters[0])
            yield self.letters[0]
            self.letters.pop(0)
            limit -= 1

    def send_again(self, letter):
        self.sent.append(letter)


def recording(settings, published, letters=None):
    """The services of a web process that notes the jobs it publishes: the broker has tests of its own."""
    services = build(settings, "web")
    quarantine = Quarantine(services.redis, services.jobs, letters or Letters(), settings.result_ttl)
    return dataclasses.replace(
        services,
        publish=published.append,
        waiting=lambda queue: sum(job.queue == queue for job in published),
        quarantine=quarantine,
    )


def params(**changes):
    return Params(**{**PARAMS, **changes})


def job(*, waits=False, queue="gen.tiny", **changes):
    """A new job; with `waits` one whose input is still to come."""
    own = {name: changes.pop(name) for name in list(changes) if name in Job.__dataclass_fields__}
    if waits:
        own = {"phase": Phase.AWAITING_UPLOAD, "upload_seconds": 900, **own}
    return Job(**{"task_id": str(uuid.uuid4()), "queue": queue, "params": params(**changes), **own})


def awaiting(services):
    """The id of a job whose input picture is still to come."""
    task_id = str(uuid.uuid4())
    services.jobs.create(job(task_id=task_id, waits=True, input_url=services.storage.url_of(input_name(task_id))))
    return task_id


def ids(published):
    return [sent.task_id for sent in published]


def submit(intake, **fields):
    submission = intake.submit(GenerateRequest(prompt="a red star", **fields), ANYONE)
    return submission.job, submission.upload


RESULT = {"images": "[]", "metrics": "{}", "worker_version": "1"}


def claim(jobs, task_id, token="t1", owner="worker-1"):
    return jobs.claim(task_id, token, owner)


def reach(jobs, phase, **changes):
    """The id of a job that has come to this phase under token t1."""
    new = job(waits=phase is Phase.AWAITING_UPLOAD, **changes)
    jobs.create(new)
    if phase in (Phase.STARTING, Phase.RUNNING, Phase.UPLOADING, Phase.DONE):
        claim(jobs, new.task_id)
    if phase in (Phase.RUNNING, Phase.UPLOADING, Phase.DONE):
        jobs.advance(new.task_id, "t1", Phase.RUNNING)
    if phase in (Phase.UPLOADING, Phase.DONE):
        jobs.advance(new.task_id, "t1", Phase.UPLOADING)
    if phase is Phase.DONE:
        jobs.succeed(new.task_id, "t1", RESULT)
    assert jobs.get(new.task_id).phase is phase
    return new.task_id


def picture(size=(64, 64), colour="red", mode="RGB", kind="PNG", **options):
    """An encoded picture of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, format=kind, **options)
    return buffer.getvalue()


def indexes(redis, task_id):
    """The names of the indexes of work that hold this id; those that only count, `of`, `open` and `model`, left out."""
    names = (name for name in redis.scan_iter("jobs:*") if redis.type(name) == "zset")
    found = {name.removeprefix("jobs:") for name in names if redis.zscore(name, task_id) is not None}
    return {name for name in found if not name.startswith(("of:", "open:", "model:"))}


def pass_time(redis, task_id, field, index):
    """As if the time had come that this field of the record names."""
    redis.hset(f"job:{task_id}", field, "1")
    redis.zadd(f"jobs:{index}", {task_id: 1})


def lease_runs_out(redis, task_id):
    pass_time(redis, task_id, "lease", "leases")


def take_over(services, task_id):
    """Another worker claims a job that is held; again, where the lease's own thread has just renewed it."""

    def is_taken_over():
        lease_runs_out(services.redis, task_id)
        return services.jobs.claim(task_id, "t2", "worker-2").job

    until(is_taken_over, 10, "another worker has it")


def deadline_passes(redis, task_id):
    pass_time(redis, task_id, "deadline_at", "deadlines")


def of_a_newer_version(redis, task_id, **more):
    """As if a newer version had written so much more into this job's parameters."""
    params = json.loads(redis.hget(f"job:{task_id}", "params"))
    redis.hset(f"job:{task_id}", "params", json.dumps({**params, **more}))


class InMemory(dict):
    """Models that are all in memory."""

    @property
    def loaded(self):
        return self.keys()


def runner(services, models, name="worker-1", turn=0, **more):
    """What runs jobs in a worker with these models, by their version."""
    models = models if hasattr(models, "loaded") else InMemory(models)
    return Runner(services, models, Line(services.jobs, models, services.settings.model_patience), name, turn, **more)
