"""Which spans are made: those that the configured sampler chooses, less what nobody asked for."""

from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, get_current_span

# Where spans are sent nowhere: they have their ids and are not recorded, which would be a twentieth of what a submit
# costs. Whoever comes with a trace that is recorded keeps it so, for those who are told of it next.
UNSENT = ParentBased(ALWAYS_OFF)

# Probes, which come every few seconds, and files, whose paths hold signed tokens.
UNTRACED = ("/healthz", "/readyz", "/metrics", "/files/")


class NoStrays(Sampler):
    """Drops what begins with a command to Redis or a request to the bucket, and what the probes ask.

    Sweeps and heartbeats make such commands all day. A request is still named by its path when it is sampled.
    """

    def __init__(self, others: Sampler) -> None:
        self._others = others

    def should_sample(
        self, parent_context: Context | None, trace_id: int, name: str, kind: SpanKind | None = None, *more: Any
    ) -> SamplingResult:
        begins = not get_current_span(parent_context).get_span_context().is_valid
        if (kind is SpanKind.CLIENT and begins) or (
            kind is SpanKind.SERVER and name.partition(" ")[2].startswith(UNTRACED)
        ):
            return SamplingResult(Decision.DROP)
        return self._others.should_sample(parent_context, trace_id, name, kind, *more)

    def get_description(self) -> str:
        return f"NoStrays({self._others.get_description()})"
