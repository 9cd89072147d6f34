"""Workers with models whose memory or device fails, and the real one, killed and asked again: through HTTP alone."""

import hashlib
import io
import signal

import psutil
import pytest
import requests
from PIL import Image, ImageChops

from app.client import ApiError
from tests.backends import embedded
from tests.models import heavy, leaks
from tests.stack import Stack, until

pytestmark = [pytest.mark.functional, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """One web process and one courier; each test starts the workers that it needs."""
    folder = tmp_path_factory.mktemp("stack")
    with embedded(folder) as settings, Stack(folder, **settings, LEASE="5") as stack:
        stack.start("web")
        stack.start("courier")
        yield stack.ready()


@pytest.fixture
def worker(stack):
    """Starts a worker of a queue and waits for its models; it is stopped at the end."""
    started = []

    def start(queue, *models, **settings):
        started.append(stack.start("worker", WORKER_QUEUE=queue, **settings))
        stack.ready(*models, seconds=200)
        return started[-1]

    yield start
    for role in started:
        role.stop()
        stack.roles.remove(role)


def child(role):
    """The process that holds the models."""
    [found] = [c for c in role.children if "spawn_main" in " ".join(c.cmdline())]
    return found


def holds_torch(pid):
    return any("libtorch" in region.path for region in psutil.Process(pid).memory_maps())


def test_memory_that_runs_out_fails_the_job_and_a_fresh_process_takes_the_next(stack, worker):
    role = worker("gen.memory", "out-of-memory")
    before = child(role).pid
    task = stack.client.wait(stack.client.generate("x", model_version="out-of-memory", width=512)["task_id"], 60)
    assert (task["error"]["code"], task["error"]["retryable"], task["attempt"]) == ("gpu_out_of_memory", False, 1)
    fits = stack.client.wait(stack.client.generate("x", model_version="out-of-memory")["task_id"], 120)
    assert (fits["status"], fits["attempt"]) == ("SUCCEEDED", 1)
    assert child(role).pid != before
    assert role.process.poll() is None


def test_a_worker_whose_model_leaks_goes_on_in_a_fresh_process_and_loses_no_job(stack, worker):
    # It holds some 80 MB, for it needs no torch: the second job is one too many.
    limit = leaks.LEAK_BYTES + 250_000_000
    role = worker("gen.leaks", "leaks", WORKER_MAX_MEMORY=str(limit))
    first = child(role)
    tickets = [stack.client.generate("x", model_version="leaks")["task_id"] for _ in range(3)]
    done = [stack.client.wait(ticket, 120) for ticket in tickets]
    assert [(task["status"], task["attempt"]) for task in done] == [("SUCCEEDED", 1)] * 3
    assert not first.is_running()
    assert child(role).memory_info().rss < limit
    assert not role.wrote("loads_for_each_job")


def test_a_device_that_fails_ends_the_worker_and_its_job_is_tried_again(stack, worker):
    role = worker("gen.memory", "device-fault")
    ticket = stack.client.generate("x", model_version="device-fault")["task_id"]
    assert role.process.wait(60) not in (0, None)
    task = until(lambda: queued_again(stack, ticket), 30, "the job goes back")
    assert (task["status"], task["attempt"]) == ("PENDING", 1)
    stack.client._json("POST", f"/tasks/{ticket}/cancel")


def queued_again(stack, ticket):
    task = stack.client.task(ticket)
    return task if task["phase"] == "QUEUED" and task["attempts"][-1].get("ended") else None


def test_a_killed_worker_and_a_rerun_give_the_same_bytes(stack, worker):
    asked = {"model_version": "tiny-scenes-1", "seed": 5, "num_inference_steps": 24}
    role = worker("gen.tiny", "tiny-scenes-1")
    ticket = stack.client.generate("a red circle on a blue background", **asked)["task_id"]
    until(lambda: (stack.client.task(ticket)["progress"] or {"step": 0})["step"] > 1, 60, "the job is under way")
    child(role).send_signal(signal.SIGKILL)
    first = stack.client.wait(ticket, 120)
    assert (first["status"], first["attempt"]) == ("SUCCEEDED", 2)
    again = stack.client.wait(stack.client.generate("a red circle on a blue background", **asked)["task_id"], 60)
    digests = {hashlib.sha256(stack.client.image(task["task_id"])).hexdigest() for task in (first, again)}
    assert digests == {first["images"][0]["sha256"]}


def test_only_the_child_of_a_worker_loads_torch(stack, worker):
    role = worker("gen.memory", "out-of-memory")
    assert (holds_torch(role.process.pid), holds_torch(child(role).pid)) == (False, True)


def test_queued_jobs_are_made_together_and_each_comes_out_as_if_it_were_alone(stack, worker):
    prompts = [f"a {colour} circle on a blue background" for colour in ("red", "green", "white", "yellow", "black")]
    tickets = [stack.client.generate(prompt, model_version="tiny-scenes-1")["task_id"] for prompt in prompts]
    worker("gen.tiny", "tiny-scenes-1")
    done = [stack.client.wait(ticket, 120) for ticket in tickets]
    assert [(task["status"], task["attempt"]) for task in done] == [("SUCCEEDED", 1)] * 5
    assert sorted(task["metrics"]["batch_size"] for task in done) == [1, 4, 4, 4, 4]
    asked = {"model_version": "tiny-scenes-1", "seed": done[2]["seed"]}
    alone = stack.client.wait(stack.client.generate(prompts[2], **asked)["task_id"], 60)
    assert (alone["metrics"]["batch_size"], difference(stack, done[2], alone) <= 1) == (1, True)


def difference(stack, *tasks):
    """The largest difference of two tasks' pictures in any channel of any pixel."""
    one, other = (Image.open(io.BytesIO(stack.client.image(task["task_id"]))) for task in tasks)
    return max(most for _, most in ImageChops.difference(one, other).getextrema())


def test_models_that_do_not_fit_together_take_turns_and_are_not_loaded_for_each_job(stack, worker):
    asked = ["heavy-one", "heavy-two"] * 4
    tickets = [stack.client.generate("x", model_version=name)["task_id"] for name in asked]
    worker("gen.heavy", "heavy-one", "heavy-two", MODEL_MEMORY="100")
    done = [stack.client.wait(ticket, 60) for ticket in tickets]
    assert [(task["status"], task["attempt"]) for task in done] == [("SUCCEEDED", 1)] * 8
    assert sum(task["metrics"]["load_ms"] > 1000 * heavy.LOAD_SECONDS for task in done) == 1


def test_a_model_tells_what_it_cost_to_load_and_which_weights_it_has(stack, worker):
    worker("gen.tiny", "tiny-scenes-1")
    [model] = [m for m in stack.client.models() if m["model_version"] == "tiny-scenes-1"]
    [here] = model["on_workers"]
    assert (model["status"], here["resident"], len(here["weights_sha256"])) == ("ready", True, 64)
    assert here["load_seconds"] > 0
    assert here["process_bytes"] > here["weights_bytes"] > 10**6


def test_a_model_that_nobody_serves_is_accepted_or_refused_as_its_entry_says(stack):
    with pytest.raises(ApiError) as refusal:
        stack.client.generate("x", model_version="no-worker")
    assert (refusal.value.problem["code"], refusal.value.problem["status"]) == ("no_worker", 503)
    task = stack.client.generate("x", model_version="steady")
    assert (task["phase"], "No worker serves steady now" in task["notice"]) == ("QUEUED", True)
    assert {m["status"] for m in stack.client.models() if m["model_version"] in ("no-worker", "steady")} == {
        "no_worker"
    }


def test_a_job_with_a_mask_starts_when_picture_and_mask_are_there(stack, worker):
    from tests.things import picture

    worker("gen.tiny", "tiny-scenes-1")
    body = {"prompt": "a blue star", "input_image": True, "mask_image": True, "num_inference_steps": 4, "width": 64,
            "height": 64, "model_version": "tiny-scenes-1"}  # fmt: skip
    ticket = requests.post(f"{stack.url}/generate", json=body, timeout=10).json()
    requests.put(ticket["upload_url"], data=picture(), timeout=10).raise_for_status()
    assert stack.client.task(ticket["task_id"])["phase"] == "AWAITING_UPLOAD"
    requests.put(ticket["mask_upload_url"], data=picture(colour="black"), timeout=10).raise_for_status()
    task = stack.client.wait(ticket["task_id"], 60)
    assert task["status"] == "SUCCEEDED"
    assert painted(stack, task) == [(64 * 64, (255, 0, 0))]


def painted(stack, task):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(stack.client.image(task["task_id"]))).convert("RGB").getcolors(10**6)
