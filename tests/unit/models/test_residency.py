"""Models share a worker by least recently used, and what happens when its memory or its device fails."""

import gc

import psutil
import pytest
import torch

from app.errors import DeviceLost, GpuOutOfMemory, JobError, ModelLoadFailed
from app.models import devices
from app.models.residency import Residents
from app.models.spec import ModelSpec
from app.record import Phase
from tests.models import device_fault, out_of_memory
from tests.models.steady import Steady
from tests.things import job, params, runner


class Weighty(Steady):
    """A model of 100 bytes."""

    weights_bytes = 100

    def generate(self, params, source, on_step):
        yield self._paint(params, source, params.seed)


@pytest.fixture
def residents(on_cpu):
    """Makes the residents of a queue with these models, and the list of what was loaded."""

    def make(*names, budget=0, load=lambda spec, settings: Weighty()):
        loaded = []

        def watched(spec, settings):
            loaded.append(spec.model_version)
            return load(spec, settings)

        specs = [ModelSpec(model_version=name, source="python:none", queue="q") for name in names]
        return Residents(specs, on_cpu.model_copy(update={"model_memory": budget}), watched), loaded

    return make


def in_memory(models):
    return [state.model_version for state in models.report() if state.resident]


def test_without_a_budget_every_model_stays(residents):
    models, loaded = residents("a", "b", "c")
    models.load_all()
    for name in "abcabc":
        assert models[name]
    assert (sorted(loaded), in_memory(models)) == (["a", "b", "c"], ["a", "b", "c"])


def test_the_model_that_was_used_longest_ago_goes(residents):
    models, loaded = residents("a", "b", "c", budget=200)
    for name in "abac":
        assert models[name]
    assert (loaded, in_memory(models)) == (["a", "b", "c"], ["a", "c"])


def test_a_worker_starts_with_every_model_tried_and_the_first_one_loaded(residents):
    models, loaded = residents("a", "b", "c", budget=100)
    models.load_all()
    assert (loaded, in_memory(models)) == (["c", "b", "a"], ["a"])


def test_a_model_larger_than_the_budget_has_it_alone(residents):
    models, _ = residents("a", "b", budget=50)
    models.load_all()
    assert in_memory(models) == ["a"]


def test_looking_whether_a_model_is_served_loads_nothing(residents):
    models, loaded = residents("a", "b")
    assert ("a" in models, "x" in models, list(models), len(models), loaded) == (True, False, ["a", "b"], 2, [])


def test_a_model_of_another_queue_is_not_served(residents):
    with pytest.raises(KeyError):
        residents("a")[0]["x"]


def test_a_model_that_does_not_fit_beside_the_others_gets_the_device_alone(residents):
    def load(spec, settings):
        if spec.model_version == "b" and in_memory(models) != []:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Weighty()

    models, loaded = residents("a", "b", load=load)
    assert models["a"]
    assert models["b"]
    assert (loaded, in_memory(models)) == (["a", "b", "b"], ["b"])


@pytest.mark.parametrize("fault", [ValueError("my own bug"), None])
def test_a_model_whose_first_picture_fails_is_named_with_the_reason(residents, fault):
    class Faulty(Weighty):
        def generate(self, *_):
            if fault:
                raise fault

    models, _ = residents("a", load=lambda spec, settings: Faulty())
    with pytest.raises(ModelLoadFailed, match=r"^a made no warm-up picture: .*(my own bug|NoneType)"):
        models.load_all()


def test_a_model_whose_first_picture_does_not_fit_beside_the_others_gets_the_device_alone(residents):
    class Hungry(Weighty):
        def generate(self, *given):
            if in_memory(models) != []:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().generate(*given)

    models, _ = residents("a", "b", load=lambda spec, settings: Hungry() if spec.model_version == "b" else Weighty())
    assert models["a"]
    assert models["b"]
    assert in_memory(models) == ["b"]


def test_a_model_that_fails_to_load_leaves_the_others(residents):
    def load(spec, settings):
        if spec.model_version == "b":
            raise ModelLoadFailed("no weights")
        return Weighty()

    models, _ = residents("a", "b", load=load)
    assert models["a"]
    with pytest.raises(ModelLoadFailed):
        models["b"]
    assert in_memory(models) == ["a"]


def test_the_report_tells_what_loading_cost(residents):
    models, _ = residents("a")
    models.load_all()
    [state] = models.report()
    assert (state.model_version, state.weights_bytes, state.device[:5]) == ("a", 100, "cpu (")
    assert state.process_bytes > 10**7
    assert state.load_seconds >= 0


def draw(models, name, **changes):
    return list(models[name].generate(params(**changes), None, lambda *_: None))


def test_a_picture_that_does_not_fit_is_tried_again_alone_and_frugally(residents):
    kinds = {"a": out_of_memory.OutOfMemory, "b": Weighty}
    models, _ = residents("a", "b", load=lambda spec, settings: kinds[spec.model_version]())
    models.load_all()
    assert len(draw(models, "a")) == 1
    assert in_memory(models) == ["a"]


def test_a_picture_that_does_not_fit_even_so_is_refused_by_its_size(residents):
    models, _ = residents("a", load=lambda spec, settings: out_of_memory.OutOfMemory())
    with pytest.raises(GpuOutOfMemory, match="512x64 does not fit"):
        draw(models, "a", width=512)
    assert len(draw(models, "a")) == 1


def test_pictures_that_do_not_fit_together_are_left_to_be_made_alone(residents):
    models, _ = residents("a", load=lambda spec, settings: out_of_memory.OutOfMemory())
    assert models["a"].together([params(width=512)] * 2, [lambda *_: None] * 2) is None


def test_how_many_go_together_is_the_settings_word_or_the_entrys_for_its_device(on_cpu):
    spec = ModelSpec(model_version="a", source="python:none", queue="q", max_batch={"cpu": 3, "cuda": 5})
    for wanted, kind, most in ((0, out_of_memory.OutOfMemory, 3), (7, out_of_memory.OutOfMemory, 7), (7, Weighty, 1)):
        settings = on_cpu.model_copy(update={"worker_max_batch": wanted})
        assert Residents([spec], settings, lambda *_, kind=kind: kind())["a"].most_together == most


def test_a_device_that_failed_is_told_from_a_fault_of_the_model(residents):
    models, _ = residents("a", load=lambda spec, settings: device_fault.DeviceFault())
    with pytest.raises(DeviceLost, match=r"^CUDA error: an illegal memory access was encountered$"):
        draw(models, "a")


class BreaksAtOnce(Weighty):
    def generate(self, params, source, on_step):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")


def breaks(spec, settings):
    raise torch.AcceleratorError("CUDA error: unspecified launch failure")


@pytest.mark.parametrize("load", [breaks, lambda spec, settings: BreaksAtOnce()])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_device_that_fails_while_a_model_is_loaded_ends_the_process_too(residents, services, load, steps):
    """What is loaded next would fail as well, and each job with it."""
    models, _ = residents("tiny-scenes-1", load=load)
    new = job(num_inference_steps=steps)
    services.jobs.create(new)
    with pytest.raises(DeviceLost):
        runner(services, models).run(new)
    assert services.jobs.get(new.task_id).error is None


def test_a_device_that_fails_under_a_loader_is_told_from_a_broken_model(on_cpu, monkeypatch):
    monkeypatch.setattr(device_fault, "load", breaks)
    spec = ModelSpec(model_version="a", source="python:tests.models.device_fault", queue="q")
    with pytest.raises(DeviceLost):
        Residents([spec], on_cpu)["a"]


@pytest.mark.parametrize(
    "words",
    [
        "GET was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    ],
)
def test_a_device_whose_libraries_find_no_memory_is_full_and_not_broken(words):
    assert devices.is_out_of_memory(RuntimeError(words))
    assert not devices.is_device_fault(RuntimeError(words))


def test_a_model_that_breaks_while_a_batch_is_sought_ends_its_job_with_a_reason(residents, services):
    def broken(spec, settings):
        raise RuntimeError("a fault of the model's own")

    models, _ = residents("tiny-scenes-1", load=broken)
    new = job(seed_drawn=True)
    services.jobs.create(new)
    with pytest.raises(JobError):
        runner(services, models).run(new)
    assert services.jobs.get(new.task_id).error["code"] == "internal"


def test_a_lost_device_leaves_the_job_to_its_lease(residents, services):
    """Neither done nor given back: the attempt counts, so that a job that breaks devices ends some day."""
    models, _ = residents("tiny-scenes-1", load=lambda spec, settings: device_fault.DeviceFault())
    new = job()
    services.jobs.create(new)
    with pytest.raises(DeviceLost):
        runner(services, models).run(new)
    left = services.jobs.get(new.task_id)
    assert (left.phase in (Phase.STARTING, Phase.RUNNING), left.attempt) == (True, 1)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
def test_memory_does_not_grow_over_a_hundred_and_fifty_jobs(made, on_cpu):
    spec = ModelSpec(
        model_version="tiny-scenes-1", source=str(made("stable-diffusion")), queue="q",
        capabilities=("txt2img", "img2img", "inpaint"), schedulers=("EulerDiscreteScheduler",),
    )  # fmt: skip
    models, sizes = Residents([spec], on_cpu), (32, 64, 96)
    for number in range(150):
        scheduler = "EulerDiscreteScheduler" if number % 2 else None
        draw(models, "tiny-scenes-1", width=sizes[number % 3], num_inference_steps=1, seed=number, scheduler=scheduler)
        if number == 50:
            after_fifty = resident_bytes()
    assert resident_bytes() <= 1.02 * after_fifty


def resident_bytes():
    gc.collect()
    return psutil.Process().memory_info().rss
