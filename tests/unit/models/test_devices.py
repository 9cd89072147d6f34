"""How a worker makes itself at home on its machine."""

import os
import subprocess
import sys

import pytest
import torch

from app.models import devices
from tests.stack import ROOT


@pytest.mark.parametrize(("asked", "threads"), [(0, 3), (7, 7)])
def test_a_model_takes_the_cores_that_its_process_may_use_unless_it_is_told(on_cpu, monkeypatch, asked, threads):
    taken = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    devices.prepare(on_cpu.model_copy(update={"torch_threads": asked}))
    assert taken == [threads]


@pytest.mark.parametrize("brings_it", ["at its import", "when it is loaded", "never"])
def test_a_model_of_ones_own_that_brings_torch_gets_the_threads_that_were_asked_for(tmp_path, brings_it):
    head = "import torch" if brings_it == "at its import" else ""
    body = "import torch" if brings_it == "when it is loaded" else "pass"
    (tmp_path / "own.py").write_text(f"{head}\ndef load(spec, device):\n    {body}\n")
    (tmp_path / "models.yaml").write_text(
        "models: [{model_version: own, source: 'python:own', queue: gen.own,"
        " defaults: {width: 64, height: 64, num_inference_steps: 4}}]"
    )
    script = """
import sys
from app.models import load_catalogue, loading
from app.settings import Settings
loading.load(load_catalogue("models.yaml").all()[0], Settings(torch_threads=3, device="cpu", signing_key=32 * "x"))
print(sys.modules["torch"].get_num_threads() if "torch" in sys.modules else "none")
"""
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == ("none" if brings_it == "never" else "3")


def test_a_device_that_only_torch_knows_brings_torch():
    script = (
        "import sys; from app.models import devices; devices.choose_device('cuda:0'); print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "True\n"
