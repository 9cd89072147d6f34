"""What a process tells of itself: logs here, traces in tracing.py. `setup(role)` is called by each entry point.

Logs: one event a line, ECS JSON for machines or columns for people. Event names are constant, data goes into fields,
and ids stand for objects. Prompts and keys are never logged.
"""

import logging
import logging.config
import os
from collections.abc import Callable
from typing import Any

import ecs_logging
import structlog

from app import __version__, tracing
from app.settings import Settings

# ECS' own words for our fields. What has none there is ours: `darkroom.*`, which ECS leaves to us.
_ECS = {
    "timestamp": "@timestamp",
    "level": "log.level",
    "logger": "log.logger",
    "request_id": "http.request.id",
    "method": "http.request.method",
    "status": "http.response.status_code",
    "error_type": "error.type",
    "reason": "event.reason",
}
# At DEBUG these tell of themselves alone, but for Pillow, which tells what a client's picture says of itself.
_TOO_MUCH = ("kombu", "amqp", "urllib3", "google", "multiprocessing", "PIL")
_ALREADY = {"event", "exception", "service.name"}


def setup(settings: Settings, role: str) -> None:
    """Logs and traces of this process."""
    tracing.setup(settings, role)
    logs(settings, role)
    logging.captureWarnings(capture=True)


def logs(settings: Settings, role: str) -> None:
    """Send every line of this process, ours and the libraries', to standard output in one format."""
    structlog.configure(
        processors=[*_shared(role), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    logging.config.dictConfig(config(settings, role))


def _shared(role: str) -> list[Any]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _named(role),
    ]


def config(settings: Settings, role: str) -> dict[str, Any]:
    """The standard library's logging, as `dictConfig` and gunicorn's `logconfig_dict` take it."""
    formatter = {
        "()": structlog.stdlib.ProcessorFormatter,
        "foreign_pre_chain": [*_shared(role), _of_celery],
        "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderer(settings.log_format)],
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": formatter},
        "filters": {"unsent": {"()": _without_what_was_sent}},
        "handlers": {"stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "line"}},
        "root": {"handlers": ["stdout"], "level": settings.log_level},
        "loggers": {
            **{name: {"level": "WARNING"} for name in _TOO_MUCH},
            "gunicorn.error": {"handlers": [], "propagate": True, "filters": ["unsent"]},
            # Its lines hold paths, and paths hold signed tokens; http.py logs each request by its route.
            "gunicorn.access": {"handlers": [], "propagate": False, "level": "CRITICAL"},
            # It tells of a task received before it knows the trace; worker.py tells of it with that.
            "celery.worker.strategy": {"level": "WARNING"},
        },
    }


def _renderer(log_format: str) -> list[Any]:
    if log_format == "console":
        # Plain: rich tracebacks show local variables, and prompts are among them.
        return [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
    return [structlog.processors.format_exc_info, _traced, _as_ecs, ecs_logging.StructlogFormatter()]


def _without_what_was_sent() -> Callable[[logging.LogRecord], bool]:
    """gunicorn repeats the head that it cannot read, and the address of a request that broke: keys may be in either."""

    def keep(record: logging.LogRecord) -> bool:
        said = str(record.msg)
        if said.startswith("Invalid request from "):
            record.msg = said.partition(": ")[0]
        elif said.startswith("Error handling request"):
            record.msg, record.args = "Error handling request", ()
        elif record.levelno < logging.INFO and isinstance(record.args, tuple):
            # What was read of a head that has no end.
            record.args = tuple(type(each).__name__ if isinstance(each, Exception) else each for each in record.args)
        return True

    return keep


def _named(role: str) -> Any:
    def add(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        event["service.name"] = f"darkroom-{role}"
        return event

    return add


def _of_celery(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Celery's own lines about a task hold its id beside the text."""
    data = getattr(event.get("_record"), "data", None)
    if isinstance(data, dict) and "id" in data:
        event.setdefault("task_id", data["id"])
    return event


def _traced(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """The trace and the step that the line belongs to, when there is one."""
    for name, value in (("trace.id", tracing.trace_id()), ("span.id", tracing.span_id())):
        if value:
            event.setdefault(name, value)
    return event


def _as_ecs(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """The same line in ECS' words."""
    milliseconds = event.pop("ms", None)
    line = {name: value for name, value in event.items() if name in _ALREADY or "." in name}
    line |= {_ECS.get(name, f"darkroom.{name}"): value for name, value in event.items() if name not in line}
    line |= {"service.version": __version__, "process.pid": os.getpid(), "event.dataset": event["service.name"]}
    if str(event.get("logger", "")).startswith("darkroom."):
        line["event.action"] = event["event"]
    if milliseconds is not None:
        # ECS counts nanoseconds.
        line["event.duration"] = int(milliseconds * 1_000_000)
    return line
