"""Where the files of a model lie, whether they are the right ones, and how they come here.

Nothing here loads a model. Only `fetch` uses the network, and only `models prefetch`, or a worker that
MODELS_FETCH allows it, calls that.
"""

import fcntl
import hashlib
import json
import re
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.errors import ModelLoadFailed
from app.models.spec import ModelSpec

# What diffusers reads of a component: its weights as plain data, its configuration, its tokenizer. Pickled
# weights run code when they are loaded and are never fetched.
_SMALL_FILES = (".json", ".txt", ".model")
_WEIGHTS = ".safetensors"


def folder_of(spec: ModelSpec, cache: str) -> Path:
    """Where the model's files lie on this machine, whether they are there or not."""
    if not spec.is_remote:
        return Path(spec.source)
    scheme, _, place = spec.source.partition(":")
    return Path(cache) / scheme / place.strip("/").replace("@", "/")


def find(spec: ModelSpec, cache: str, *, allow_fetch: bool = False, device: str = "cpu") -> Path:
    """The model's folder, checked against its digest; raises ModelLoadFailed in one sentence."""
    folder = folder_of(spec, cache)
    if spec.is_remote and allow_fetch and not folder.exists():
        fetch(spec, cache, device)
    if not (folder / "model_index.json").is_file():
        raise ModelLoadFailed(f"{spec.model_version} is not in {folder}.{_remedy(spec)}")
    verify(spec, folder)
    return folder


def _remedy(spec: ModelSpec) -> str:
    return f" `python -m app models prefetch {spec.model_version}` brings it." if spec.is_remote else ""


def verify(spec: ModelSpec, folder: Path) -> str:
    """The digest of the folder's weights; raises ModelLoadFailed when the catalogue names another."""
    digest = weights_digest(folder)
    if spec.weights_sha256 and digest != spec.weights_sha256:
        raise ModelLoadFailed(
            f"{spec.model_version}: the weights in {folder} have the digest {digest}, "
            f"but the catalogue says {spec.weights_sha256}."
        )
    return digest


def weights_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all weight files below the folder, in the order of their names."""
    files = sorted(folder.rglob(f"*{_WEIGHTS}"))
    return _digest(str(folder), tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


# Kept as long as the files are the same: a model that is loaded again need not be read twice.
@lru_cache(maxsize=64)
def _digest(folder: str, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def weights_size(folder: Path) -> int:
    """Bytes of all weight files below the folder: what a model takes at most before anyone has loaded it."""
    return sum(path.stat().st_size for path in folder.rglob(f"*{_WEIGHTS}"))


def fetch(spec: ModelSpec, cache: str, device: str) -> Path:
    """Bring the model's files here, whole or not at all; raises ModelLoadFailed.

    A folder gets its name only once everything is in it; what an interrupted fetch left is used by the next one. The
    workers of several GPUs may share a cache: one of them fetches, the others wait for it.
    """
    folder = folder_of(spec, cache)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder if folder.exists() else _fetched(spec, folder, device)


def _fetched(spec: ModelSpec, folder: Path, device: str) -> Path:
    part = folder.with_name(f".{folder.name}.part")
    part.mkdir(exist_ok=True)
    bring = _from_hub if spec.source.startswith("hf:") else _from_bucket
    try:
        bring(spec, part, _variant(spec, device))
    except Exception as error:
        raise ModelLoadFailed(f"{spec.model_version} cannot be fetched: {first_line(error)}") from error
    shutil.rmtree(part / ".cache", ignore_errors=True)
    verify(spec, part)
    part.replace(folder)
    return folder


def first_line(error: Exception) -> str:
    """What an error says, without what follows it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _variant(spec: ModelSpec, device: str) -> str | None:
    return getattr(spec.variant, device.partition(":")[0], None)


def _from_hub(spec: ModelSpec, part: Path, variant: str | None) -> None:
    # Deferred, as below: only those who fetch need it.
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    repository, _, revision = spec.source.removeprefix("hf:").partition("@")
    index = Path(hf_hub_download(repository, "model_index.json", revision=revision, local_dir=part))
    files = HfApi().list_repo_files(repository, revision=revision)
    components = _components(json.loads(index.read_text(encoding="utf-8")), spec)
    chosen = ["model_index.json", *wanted(files, components, variant)]
    snapshot_download(repository, revision=revision, local_dir=part, allow_patterns=chosen)


def _components(index: dict[str, Any], spec: ModelSpec) -> list[str]:
    """The parts that a model_index.json names, but for a safety checker that will not be loaded."""
    named = [name for name, value in index.items() if isinstance(value, list) and value[0]]
    return [name for name in named if spec.safety_checker or name != "safety_checker"]


def wanted(files: list[str], components: list[str], variant: str | None) -> list[str]:
    """Which of a repository's files these parts of a pipeline need.

    A part that has no weights of this variant is taken with the plain ones, as diffusers does.
    """
    chosen = []
    for component in components:
        own = [name for name in files if re.fullmatch(f"{re.escape(component)}/[^/]+", name)]
        of_variant = [name for name in own if variant and _holds_weights(name, f".{variant}")]
        chosen += of_variant or [name for name in own if _holds_weights(name, "")]
        chosen += [name for name in own if _WEIGHTS not in name and name.endswith(_SMALL_FILES)]
    return chosen


def _holds_weights(name: str, infix: str) -> bool:
    """Whole or in numbered shards with their index: `m.safetensors`, `m.fp16-00001-of-00002.safetensors`, …"""
    infix = re.escape(infix)
    whole_or_shard = rf"[^.]+{infix}(-\d+-of-\d+)?\.safetensors"
    return bool(re.fullmatch(rf"{whole_or_shard}|[^.]+\.safetensors\.index{infix}\.json", name))


def _from_bucket(spec: ModelSpec, part: Path, _: str | None) -> None:
    from google.cloud import storage

    bucket, _, prefix = spec.source.removeprefix("gs://").partition("/")
    prefix = prefix.strip("/") + "/"
    blobs = [blob for blob in storage.Client().list_blobs(bucket, prefix=prefix) if not blob.name.endswith("/")]
    if not blobs:
        raise FileNotFoundError(f"there is nothing at {spec.source}")
    for blob in blobs:
        target = part / blob.name.removeprefix(prefix)
        if part.resolve() not in target.resolve().parents:
            raise ValueError(f"{blob.name} would lie outside of the model's folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (target.exists() and target.stat().st_size == blob.size):
            blob.download_to_filename(str(target), checksum="crc32c")
