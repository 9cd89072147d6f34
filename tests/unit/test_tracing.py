"""Traces: which spans are made, and how a trace goes on over a record."""

import itertools

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, TraceFlags

from app import generate, tracing, worker
from app.errors import GpuOutOfMemory
from app.sampling import NoStrays
from tests.things import job, runner
from tests.unit.test_batch import Press
from tests.unit.test_turns import Painter

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def made(monkeypatch):
    """The spans that were made and ended."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.sampler = NoStrays(provider.sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_TRACER", provider.get_tracer("darkroom"))
    return exporter.get_finished_spans


def test_what_is_done_within_belongs_to_the_trace_of_the_record(made):
    with tracing.continued(PARENT), tracing.span("step", task_id="7"):
        assert tracing.trace_id() == "4bf92f3577b34da6a3ce929d0e0e4736"
        assert tracing.traceparent().split("-")[1] == tracing.trace_id()
    [span] = made()
    assert f"{span.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert span.attributes["darkroom.task_id"] == "7"
    assert tracing.trace_id() == ""


def test_a_record_without_a_trace_joins_none(made):
    with tracing.span("outer"), tracing.continued(None):
        assert tracing.traceparent() is None


def test_of_an_error_only_its_kind_is_kept(made):
    with pytest.raises(GpuOutOfMemory), tracing.span("step"):
        raise GpuOutOfMemory("a most secret prompt")
    [span] = made()
    assert span.attributes["error.type"] == "gpu_out_of_memory"
    assert "secret" not in span.to_json()


@pytest.mark.parametrize(
    ("name", "kind", "kept"),
    [
        ("EVALSHA", SpanKind.CLIENT, False),
        ("GET /healthz", SpanKind.SERVER, False),
        ("PUT /files/token/name", SpanKind.SERVER, False),
        ("POST /generate", SpanKind.SERVER, True),
        ("job.attempt", SpanKind.INTERNAL, True),
    ],
)
def test_no_trace_begins_with_what_nobody_asked_for(made, name, kind, kept):
    with tracing.span(name, kind):
        pass
    assert bool(made()) == kept


def is_sampled():
    """By the trace's own flags."""
    return bool(int(tracing.traceparent().split("-")[3], 16) & TraceFlags.SAMPLED)


def test_where_nothing_is_sent_a_trace_that_begins_has_its_id_and_is_not_recorded(settings, monkeypatch):
    monkeypatch.setattr(tracing, "_TRACER", tracing._provider(settings, "web").get_tracer("darkroom"))
    with tracing.span("step") as step:
        assert (step.is_recording(), is_sampled(), len(tracing.trace_id())) == (False, False, 32)
    with tracing.continued(PARENT), tracing.span("step"):
        assert is_sampled()


def test_a_command_within_a_trace_is_part_of_it(made):
    with tracing.span("job.claim"), tracing.span("EVALSHA", SpanKind.CLIENT):
        pass
    assert [span.name for span in made()] == ["EVALSHA", "job.claim"]


def test_a_child_that_ends_sends_what_is_not_yet_sent(monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    with provider.get_tracer("darkroom").start_as_current_span("job.attempt"):
        pass
    worker.signals.worker_process_shutdown.send(sender=None, pid=1, exitcode=0)
    assert [span.name for span in exporter.get_finished_spans()] == ["job.attempt"]


def test_a_message_names_the_trace_of_its_job():
    described = job(traceparent=PARENT)
    assert type(described).from_message(described.message()).trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"


WAY = {"job.claim", "job.wait", "job.load_model", "job.attempt", "job.inference", "job.upload", "job.finish"}


class Lines:
    """Takes a module's log: what was said, with the trace that was under way."""

    def __init__(self):
        self.said = []

    def info(self, event, **_):
        self.said.append((event, tracing.trace_id()))


@pytest.fixture
def jobs(services):
    """Two jobs in line, each of a trace of its own."""
    queued = [job(traceparent=PARENT.replace("4bf9", f"000{number}"), seed=1, seed_drawn=True) for number in (1, 2)]
    for each in queued:
        services.jobs.create(each)
    return queued


def steps(made, each):
    """The names of the spans in this job's trace."""
    trace_id = each.traceparent.split("-")[1]
    return [span.name for span in made() if f"{span.context.trace_id:032x}" == trace_id]


def test_each_job_of_a_turn_goes_its_whole_way_in_its_own_trace(services, made, jobs, monkeypatch):
    lines = Lines()
    monkeypatch.setattr(generate, "log", lines)
    with tracing.continued(jobs[0].traceparent):
        runner(services, {"tiny-scenes-1": Painter()}, turn=60).run(jobs[0])
    assert [sorted(steps(made, each)) for each in jobs] == [sorted(WAY)] * 2
    assert lines.said == [("job.attempt_ended", each.traceparent.split("-")[1]) for each in jobs]


def test_jobs_that_are_made_at_once_show_the_one_call_in_each_of_their_traces(services, made, jobs):
    with tracing.continued(jobs[0].traceparent):
        runner(services, {"tiny-scenes-1": Press()}).run(jobs[0])
    assert [steps(made, each).count("job.inference") for each in jobs] == [1, 1]
    assert {s.attributes["darkroom.batch_size"] for s in made() if s.name == "job.inference"} == {2}


def test_a_step_that_is_over_keeps_its_times(made):
    for ago, took in itertools.product((0, 5), (0, 30)):
        tracing.record("job.wait", ago, took)
        assert made()[-1].end_time - made()[-1].start_time == pytest.approx(took * 1e9, abs=1000)
