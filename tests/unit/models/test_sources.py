"""Where models' files lie, whether they are the right ones, and how they are fetched."""

import hashlib
import http.server
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.errors import ModelLoadFailed
from app.models import sources
from app.models.spec import ModelSpec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "model_index.json": json.dumps({
        "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "safety_checker": ["stable_diffusion", "Checker"],
        "image_encoder": [None, None],
    }).encode(),
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"full weights",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half weights",
    "unet/diffusion_pytorch_model.bin": b"pickled weights",
    "unet/flax_model.msgpack": b"flax",
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"#version: 0.2",
    "safety_checker/model.safetensors": b"checker",
    "v1-5-pruned.safetensors": b"one file for other programs",
    "README.md": b"card",
}  # fmt: skip


def spec(source, **entry):
    return ModelSpec(model_version="one-1", source=source, queue="q", **entry)


HUB = spec(f"hf:someone/some-model@{COMMIT}")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its client asks for."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.server.asked.append(self.path)
        self.answer(body=True)

    def answer(self, *, body):
        name = self.path.partition(f"/resolve/{COMMIT}/")[2]
        if "/api/models/" in self.path:
            siblings = [{"rfilename": path} for path in FILES]
            data = json.dumps({"id": "someone/some-model", "sha": COMMIT, "siblings": siblings}).encode()
            if "/tree/" in self.path:
                data = json.dumps([{"type": "file", "path": p, "size": len(d), "oid": "0" * 40}
                                   for p, d in FILES.items()]).encode()  # fmt: skip
        elif name in FILES:
            data = FILES[name]
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A hub of our own; the list of what was asked of it."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        from huggingface_hub import constants

        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", url, raising=False)
        yield server.asked
        server.shutdown()


def files_below(folder):
    """But for the locks of those who fetch."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return sorted(path.relative_to(folder).as_posix() for path in files)


def test_the_hub_gives_the_files_of_one_commit_that_the_pipeline_needs(hub, tmp_path):
    folder = sources.find(HUB, str(tmp_path), allow_fetch=True)
    assert folder == tmp_path / "hf" / "someone" / "some-model" / COMMIT
    assert files_below(folder) == [
        "model_index.json", "tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip


def test_what_is_here_is_not_fetched_again(hub, tmp_path):
    sources.find(HUB, str(tmp_path), allow_fetch=True)
    hub.clear()
    sources.find(HUB, str(tmp_path), allow_fetch=True)
    assert hub == []


def test_workers_that_share_a_cache_fetch_once(hub, tmp_path):
    together = threading.Barrier(4)

    def find(_):
        together.wait(20)
        return sources.find(HUB, str(tmp_path), allow_fetch=True)

    with ThreadPoolExecutor(4) as workers:
        [folder] = set(workers.map(find, range(4)))
    weights = [path for path in hub if path.endswith(".safetensors")]
    assert len(weights) == len(set(weights)), "each file is asked for once"
    assert not folder.with_name(f".{folder.name}.part").exists()


def test_weights_with_another_digest_do_not_get_the_models_name(hub, tmp_path):
    wrong = HUB.model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(ModelLoadFailed, match="the catalogue says 0000"):
        sources.fetch(wrong, str(tmp_path), "cpu")
    assert not sources.folder_of(wrong, str(tmp_path)).exists()


def test_a_worker_that_may_not_fetch_says_what_to_do(hub, tmp_path):
    with pytest.raises(ModelLoadFailed, match="`python -m app models prefetch one-1` brings it"):
        sources.find(HUB, str(tmp_path))
    assert hub == []


@pytest.mark.parametrize(
    ("variant", "weights"),
    [
        (None, ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.safetensors.index.json"]),
        ("fp16", ["m.fp16-00001-of-00001.safetensors", "m.safetensors.index.fp16.json"]),
        ("bf16", ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.safetensors.index.json"]),
    ],
)
def test_shards_of_one_variant_are_taken(variant, weights):
    names = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.safetensors.index.json",
             "m.fp16-00001-of-00001.safetensors", "m.safetensors.index.fp16.json", "m.non_ema.safetensors"]  # fmt: skip
    chosen = sources.wanted([f"t/{name}" for name in names] + ["t/config.json", "other/m.safetensors"], ["t"], variant)
    assert sorted(chosen) == sorted(["t/config.json", *(f"t/{name}" for name in weights)])


def test_the_digest_is_of_names_and_contents(tmp_path):
    (tmp_path / "unet").mkdir()
    first = tmp_path / "unet" / "a.safetensors"
    first.write_bytes(b"weights")
    one = sources.weights_digest(tmp_path)
    first.rename(tmp_path / "unet" / "b.safetensors")
    two = sources.weights_digest(tmp_path)
    (tmp_path / "unet" / "b.safetensors").write_bytes(b"weightz")
    assert len({one, two, sources.weights_digest(tmp_path)}) == 3


def test_a_bucket_is_fetched_whole_and_kept_within_its_folder(monkeypatch, tmp_path):
    class Blob:
        def __init__(self, name, data):
            self.name, self.data, self.size = name, data, len(data)

        def download_to_filename(self, path, checksum):
            Path(path).write_bytes(self.data)

    blobs = [Blob("m/v1/model_index.json", b"{}"), Blob("m/v1/unet/m.safetensors", b"w"), Blob("m/v1/unet/", b"")]

    class Client:
        def list_blobs(self, bucket, prefix):
            assert (bucket, prefix) == ("models", "m/v1/")
            return blobs

    monkeypatch.setattr("google.cloud.storage.Client", Client)
    in_bucket = spec("gs://models/m/v1")
    folder = sources.fetch(in_bucket, str(tmp_path), "cpu")
    assert files_below(folder) == ["model_index.json", "unet/m.safetensors"]
    blobs[:] = [Blob("m/v1/../../../evil", b"x")]
    with pytest.raises(ModelLoadFailed, match="outside"):
        sources.fetch(spec("gs://models/m/v1/"), str(tmp_path / "other"), "cpu")
    assert files_below(tmp_path / "other") == []
