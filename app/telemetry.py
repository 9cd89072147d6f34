"""Logs: one event a line, ECS JSON for machines or columns for people. `setup(role)` is called by each entry point.

Event names are constant, data goes into fields, and ids stand for objects. Prompts and keys are never logged.
"""

import logging
import logging.config
from typing import Any

import ecs_logging
import structlog

from app.settings import Settings


def setup(settings: Settings, role: str) -> None:
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
        "foreign_pre_chain": _shared(role),
        "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderer(settings.log_format)],
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": formatter},
        "handlers": {"stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "line"}},
        "root": {"handlers": ["stdout"], "level": settings.log_level},
        "loggers": {
            **{name: {"level": "WARNING"} for name in ("kombu", "amqp", "urllib3", "google")},
            "gunicorn.error": {"handlers": [], "propagate": True},
            # Its lines hold paths, and paths hold signed tokens; web.py logs each request by its route.
            "gunicorn.access": {"handlers": [], "propagate": False, "level": "CRITICAL"},
        },
    }


def _renderer(log_format: str) -> list[Any]:
    if log_format == "console":
        # Plain: rich tracebacks show local variables, and prompts are among them.
        return [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
    return [structlog.processors.format_exc_info, ecs_logging.StructlogFormatter()]


def _named(role: str) -> Any:
    def add(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        event["service.name"] = f"darkroom-{role}"
        return event

    return add
