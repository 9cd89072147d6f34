"""One trace from the client's request to the picture and the webhook, received by OTLP."""

import collections

import pytest
import requests

from tests.deploy.observability.conftest import PROMPT
from tests.deploy.observability.files import load
from tests.stack import until

pytestmark = [pytest.mark.deploy, pytest.mark.services, pytest.mark.timeout(200)]

SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5
STEPS = ["job.claim", "job.wait", "job.load_model", "job.inference", "job.upload", "job.finish"]


@pytest.fixture(scope="session")
def trace(collector, done):
    """The spans of the task that is done, by their ids."""

    def complete():
        spans = {span.id: span for span in collector.trace(done["asked"])}
        names = {span.name for span in spans.values()}
        return names >= {"POST /generate", "run/darkroom.generate", "webhook.deliver", *STEPS} and spans

    return until(complete, 15, "the trace is complete")


def one(trace, name):
    found = [span for span in trace.values() if span.name == name]
    assert len(found) == 1, f"{name} in {list(trace.values())}"
    return found[0]


def test_every_step_of_a_job_hangs_on_the_clients_own_span(trace):
    request, sent, run = one(trace, "POST /generate"), one(trace, "send gen.test"), one(trace, "run/darkroom.generate")
    attempt, told = one(trace, "job.attempt"), one(trace, "webhook.deliver")
    assert (request.parent, request.kind, request.service) == ("00f067aa0ba902b7", SERVER, "darkroom-web")
    assert (sent.parent, sent.kind, sent.service) == (request.id, PRODUCER, "darkroom-web")
    assert (run.parent, run.kind, run.service) == (sent.id, CONSUMER, "darkroom-worker")
    assert attempt.parent == run.id
    assert one(trace, "job.wait").parent == run.id
    assert {one(trace, name).parent for name in STEPS[2:]} == {attempt.id}
    assert (told.parent, told.kind, told.service) == (request.id, CLIENT, "darkroom-courier")


def test_the_wait_in_the_queue_ends_with_the_claim(trace):
    sent, claim, waited = one(trace, "send gen.test"), one(trace, "job.claim"), one(trace, "job.wait")
    assert sent.begun - 0.1 < waited.begun <= waited.ended <= claim.ended + 0.1


def test_a_job_that_was_lost_and_done_again_is_one_trace(collector, lost):
    """The attempt that died took its open spans along; what it had done before is there."""

    def complete():
        spans = {span.id: span for span in collector.trace(lost["trace_id"])}
        return {"job.finish", "webhook.deliver"} <= {span.name for span in spans.values()} and spans

    spans = until(complete, 15, "the trace is complete")
    found = collections.Counter(span.name for span in spans.values() if span.kind != CLIENT)
    assert found["send gen.test"] == 2
    first, second = sorted((s for s in spans.values() if s.name == "send gen.test"), key=lambda span: span.begun)
    # Whoever saw first that the input is there: a request, or the sweep. What was lost is the sweep's.
    assert first.service in {"darkroom-web", "darkroom-courier"}
    assert second.service == "darkroom-courier"
    [attempt] = [span for span in spans.values() if span.name == "job.attempt"]
    assert attempt.attributes["darkroom.attempt"] == 2
    assert {"job.fetch_input", *STEPS[2:]} <= {span.name for span in spans.values() if span.parent == attempt.id}


def test_commands_to_redis_and_requests_to_the_bucket_are_steps_of_it(trace):
    redis = {span.service for span in trace.values() if span.attributes.get("db.system.name") == "redis"}
    assert redis == {"darkroom-web", "darkroom-worker", "darkroom-courier"}
    upload = one(trace, "job.upload")
    assert [span.name for span in trace.values() if span.parent == upload.id and span.kind == CLIENT]


def test_the_task_and_the_answers_name_the_trace(done, receiver, trace):
    assert done["trace_id"] == done["asked"]
    assert done["answered"]["traceparent"].split("-")[1:3] == [done["asked"], one(trace, "POST /generate").id]
    _, headers, _ = receiver.got[0]
    assert headers["traceparent"].split("-")[1:3] == [done["asked"], one(trace, "webhook.deliver").id]


def test_a_problem_document_names_the_trace_of_its_request(stack, collector):
    answer = requests.get(f"{stack.url}/tasks/no-such-task", timeout=10)
    assert answer.status_code == 404
    until(lambda: collector.trace(answer.json()["trace_id"]), 10, "its trace is there")


def test_no_attribute_of_any_span_holds_a_prompt_or_a_key(collector, trace):
    text = "".join(span.text for span in collector.spans)
    assert PROMPT not in text
    assert "whsec_" not in text


def test_no_trace_is_begun_by_heartbeats_sweeps_and_probes(stack, collector, trace):
    roots = {span.name for span in collector.spans if not span.parent}
    assert {name.partition(" ")[0] for name in roots} <= {"GET", "POST", "DELETE"}
    assert {"GET /healthz", "GET /readyz", "GET /metrics"} & roots == set()


# What the image otel/opentelemetry-collector holds of what one would use here; the larger one is called -contrib.
CORE = {
    "receivers": {"otlp", "jaeger", "zipkin", "prometheus", "hostmetrics"},
    "processors": {"batch", "memory_limiter", "attributes", "resource", "span", "filter", "probabilistic_sampler"},
    "exporters": {"otlp", "otlphttp", "zipkin", "file", "debug"},
    "extensions": {"health_check", "pprof", "zpages"},
}


def test_the_collector_defines_what_it_uses_and_uses_what_its_image_holds(tmp_path):
    config = load("traces/collector.yaml")
    used = {kind: {name for p in config["service"]["pipelines"].values() for name in p.get(kind, ())} for kind in CORE}
    used["extensions"] = set(config["service"]["extensions"])
    assert {kind: set(config[kind]) for kind in CORE} == used
    assert all(used[kind] <= CORE[kind] for kind in CORE)
    # Memory first, so that nothing is gathered that there is no room for.
    assert config["service"]["pipelines"]["traces"]["processors"] == ["memory_limiter", "batch"]
