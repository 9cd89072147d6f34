"""One trace from the request to the picture and the webhook, by OpenTelemetry.

Every log line and every task has its trace id. Spans are recorded and sent only where `OTEL_EXPORTER_OTLP_ENDPOINT`
says whereto; the other variables of OpenTelemetry's SDK (`OTEL_TRACES_SAMPLER`, say) hold there as they are specified.
No attribute holds a prompt.
"""

import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app import __version__
from app.settings import Settings

# How a trace is written on a job's record and in a webhook, whatever OTEL_PROPAGATORS says.
_W3C = TraceContextTextMapPropagator()

# Makes no spans until `setup` has said how.
_TRACER = trace.get_tracer("darkroom", __version__)


def setup(settings: Settings, role: str) -> None:
    """Make the spans of this process, and of the libraries that it uses. Once in a process."""
    # Deferred, here and below: a client's command traces nothing, and what sends spans is slow to import.
    from opentelemetry.sdk.trace import TracerProvider

    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    trace.set_tracer_provider(_provider(settings, role))
    if settings.otel_exporter_otlp_endpoint:
        from opentelemetry.instrumentation.redis import RedisInstrumentor
        from opentelemetry.instrumentation.requests import RequestsInstrumentor

        # A span for each command is dear where nobody sees it: a third of a command's time.
        RedisInstrumentor().instrument()
        RequestsInstrumentor().instrument()
    if role == "worker":
        # The receiving side only. Its publishing side never ends a span whose message the broker refused.
        from opentelemetry.instrumentation.celery import CeleryInstrumentor

        CeleryInstrumentor().instrument()  # type: ignore[no-untyped-call]


def _provider(settings: Settings, role: str) -> Any:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    from app.sampling import UNSENT, NoStrays

    resource = Resource.create({"service.name": f"darkroom-{role}", "service.version": __version__})
    # None is the one that OTEL_TRACES_SAMPLER names.
    provider = TracerProvider(resource=resource, sampler=None if settings.otel_exporter_otlp_endpoint else UNSENT)
    provider.sampler = NoStrays(provider.sampler)
    if settings.otel_exporter_otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def instrument(app: Any) -> None:
    """A span for each request of this Flask app; it goes on with the client's trace."""
    # By WSGI: the instrumentation of Flask asks for the URL also of a request whose host Flask refuses, and breaks it.
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    app.wsgi_app = OpenTelemetryMiddleware(app.wsgi_app)


def name_request(method: str, route: str) -> None:
    """The request's span by its route, where it is known now: paths are without number."""
    current = trace.get_current_span()
    current.update_name(f"{method} {route}".strip())
    current.set_attribute("http.route", route)


def close() -> None:
    """Send what is not yet sent: a process that ends by itself runs no exit handlers."""
    if shutdown := getattr(trace.get_tracer_provider(), "shutdown", None):
        shutdown()


@contextmanager
def span(name: str, kind: SpanKind = SpanKind.INTERNAL, **attributes: str | int | None) -> Iterator[Span]:
    """What is done within, as one step of the trace. `task_id` is written `darkroom.task_id`.

    Of an error only its kind is kept: its words may be a model's, and hold the prompt.
    """
    with _TRACER.start_as_current_span(
        name, kind=kind, attributes=_ours(attributes), record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            failed(getattr(error, "code", None) or type(error).__name__)
            raise


def record(name: str, seconds_ago: float, seconds: float, **attributes: str | int) -> None:
    """A step that is over: it ended so long ago and took so long."""
    ended = time.time_ns() - int(seconds_ago * 1e9)
    _TRACER.start_span(name, start_time=ended - int(seconds * 1e9), attributes=_ours(attributes)).end(ended)


def _ours(attributes: Mapping[str, str | int | None]) -> dict[str, str | int]:
    """Under names of our own, and without those that are not known."""
    return {f"darkroom.{name}": value for name, value in attributes.items() if value is not None}


def failed(reason: str) -> None:
    """The step under way failed; `reason` is an error's code or its type."""
    current = trace.get_current_span()
    current.set_attribute("error.type", str(reason))
    current.set_status(Status(StatusCode.ERROR))


def trace_id() -> str:
    """The trace under way, in 32 hexadecimal digits; empty when there is none."""
    found = trace.get_current_span().get_span_context()
    return trace.format_trace_id(found.trace_id) if found.is_valid else ""


def span_id() -> str:
    """The step under way, in 16 hexadecimal digits; empty when there is none."""
    found = trace.get_current_span().get_span_context()
    return trace.format_span_id(found.span_id) if found.is_valid else ""


def traceparent() -> str | None:
    """The trace under way as a `traceparent` header holds it; None when there is none."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent")


def inject(headers: MutableMapping[str, str]) -> None:
    """Name the trace under way in the headers of a message."""
    propagate.inject(headers)


@contextmanager
def continued(parent: str | None) -> Iterator[None]:
    """What is done within belongs to the trace of this `traceparent`, and to none where it is None."""
    token = context.attach(_W3C.extract({"traceparent": parent or ""}, context.Context()))
    try:
        yield
    finally:
        context.detach(token)
