"""`python -m app models list|prefetch`: what the catalogue offers, and bringing it to this machine."""

import click

from app import settings as settings_module
from app.errors import DarkroomError, ModelLoadFailed
from app.models import Catalogue, ModelSpec, load_catalogue, sources
from app.settings import Settings


@click.group()
def models() -> None:
    """The models of the catalogue, and their files on this machine."""


@models.command("list")
@click.option("--digests", is_flag=True, help="Read the weights and print their digest, for `weights_sha256`.")
def list_models(*, digests: bool) -> None:
    """Print each model, its queue, its licence, and whether its files are here."""
    settings, catalogue = _read()
    for spec in catalogue.all():
        click.echo(f"{spec.model_version:24} {spec.queue:16} {_state(spec, settings):8} {spec.licence}")
        folder = sources.folder_of(spec, settings.models_cache)
        if digests and not spec.is_python and folder.is_dir():
            click.echo(f"  weights_sha256: {sources.weights_digest(folder)}")


@models.command()
@click.argument("model_versions", nargs=-1)
@click.option("--device", default="", help="Fetch what this kind of device loads: cuda, mps or cpu. Default: DEVICE.")
def prefetch(model_versions: tuple[str, ...], device: str) -> None:
    """Fetch models, or check those that are here; without a name those of WORKER_QUEUE."""
    settings, catalogue = _read()
    try:
        chosen = [catalogue.get(name) for name in model_versions] or _served(settings, catalogue)
    except DarkroomError as error:
        raise click.ClickException(str(error)) from None
    failed = [spec.model_version for spec in chosen if not _bring(spec, settings, device or settings.device)]
    if failed:
        raise click.ClickException(f"not here: {', '.join(failed)}")


def _read() -> tuple[Settings, Catalogue]:
    try:
        settings = settings_module.load()
        return settings, load_catalogue(settings.models_file, settings.default_model_version)
    except DarkroomError as error:
        raise click.ClickException(str(error)) from None


def _served(settings: Settings, catalogue: Catalogue) -> list[ModelSpec]:
    return catalogue.on_queue(settings.worker_queue or catalogue.default.queue)


def _state(spec: ModelSpec, settings: Settings) -> str:
    folder = sources.folder_of(spec, settings.models_cache)
    return "module" if spec.is_python else "here" if (folder / "model_index.json").is_file() else "missing"


def _bring(spec: ModelSpec, settings: Settings, device: str) -> bool:
    """Fetch one model where it is missing, and say how that went."""
    if spec.is_python:
        return True
    click.echo(f"{spec.model_version}: ", nl=False)
    try:
        folder = sources.find(spec, settings.models_cache, allow_fetch=True, device=_kind(device))
    except ModelLoadFailed as error:
        click.echo(str(error))
        return False
    click.echo(f"{folder} {sources.weights_digest(folder)}")
    return True


def _kind(device: str) -> str:
    if device != "auto":
        return device
    # Deferred: only this looks at the machine, and torch takes seconds to import.
    from app.models import devices

    return devices.choose_device("auto")
