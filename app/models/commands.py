"""`python -m app models list|prefetch`: what the catalogue offers, and bringing it to this machine."""

import secrets
from typing import Any

import click

from app import settings as settings_module
from app.console import DONE, REFUSED, Output, answers
from app.errors import ModelLoadFailed
from app.models import Catalogue, ModelSpec, load_catalogue, sources
from app.settings import Settings


@click.command("list")
@click.option("--digests", is_flag=True, help="Read the weights and tell their digest, for `weights_sha256`.")
@answers
def list_models(output: Output, *, digests: bool) -> int:
    """List the models of the catalogue. Each with its queue, its licence, and whether its files are here."""
    settings, catalogue = _read()
    found = [_described(spec, settings, digests=digests) for spec in catalogue.all()]
    names = ["model_version", "queue", "state", "licence", *(["weights_sha256"] if digests else [])]
    rows = [[model[name] or "" for name in names] for model in found]
    output.table({"models": found}, ["model", *names[1:]], rows)
    return DONE


@click.command()
@click.argument("model_versions", nargs=-1)
@click.option(
    "--device", type=click.Choice(["", "cuda", "mps", "cpu"]), default="", metavar="KIND",
    help="Fetch what this kind of device loads: cuda, mps or cpu. Default: DEVICE.",
)  # fmt: skip
@answers
def prefetch(output: Output, model_versions: tuple[str, ...], device: str) -> int:
    """Fetch models to this machine.

    Those that are here are checked; without a name those of WORKER_QUEUE. Status 1 when one fails.
    """
    settings, catalogue = _read()
    chosen = [catalogue.get(name) for name in model_versions] or _served(settings, catalogue)
    brought = []
    for spec in chosen:
        output.note(f"{spec.model_version} …")
        brought.append(_bring(spec, settings, device or settings.device))
    lines = [f"{b['model_version']}: {b['error'] or b['folder'] or 'a module'}" for b in brought]
    output.result({"models": brought}, "\n".join(lines))
    return REFUSED if any(model["error"] for model in brought) else DONE


def _read() -> tuple[Settings, Catalogue]:
    # What signs nothing needs no key for it.
    settings = settings_module.load(signing_key=secrets.token_urlsafe(32))
    return settings, load_catalogue(settings.models_file, settings.default_model_version)


def _served(settings: Settings, catalogue: Catalogue) -> list[ModelSpec]:
    return catalogue.on_queue(settings.worker_queue or catalogue.default.queue)


def _described(spec: ModelSpec, settings: Settings, *, digests: bool) -> dict[str, Any]:
    state, folder = _state(spec, settings), sources.folder_of(spec, settings.models_cache)
    facts = {"model_version": spec.model_version, "queue": spec.queue, "state": state, "licence": spec.licence}
    digest = sources.weights_digest(folder) if digests and state == "here" else None
    return {**facts, "source": spec.source, **({"weights_sha256": digest} if digests else {})}


def _state(spec: ModelSpec, settings: Settings) -> str:
    folder = sources.folder_of(spec, settings.models_cache)
    return "module" if spec.is_python else "here" if (folder / "model_index.json").is_file() else "missing"


def _bring(spec: ModelSpec, settings: Settings, device: str) -> dict[str, str | None]:
    """Fetch one model where it is missing; where it is then and its digest, or why it is not."""
    told: dict[str, str | None] = {"model_version": spec.model_version, "folder": None, "weights_sha256": None}
    if spec.is_python:
        return {**told, "error": None}
    try:
        folder = sources.find(spec, settings.models_cache, allow_fetch=True, device=_kind(device))
    except ModelLoadFailed as error:
        return {**told, "error": str(error)}
    return {**told, "folder": str(folder), "weights_sha256": sources.weights_digest(folder), "error": None}


def _kind(device: str) -> str:
    if device != "auto":
        return device
    # Deferred: only this looks at the machine, and torch takes seconds to import.
    from app.models import devices

    return devices.choose_device("auto")
