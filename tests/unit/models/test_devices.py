"""How a worker makes itself at home on its machine."""

import os

import pytest
import torch

from app.models import devices


@pytest.mark.parametrize(("asked", "threads"), [(0, 3), (7, 7)])
def test_a_model_takes_the_cores_that_its_process_may_use_unless_it_is_told(on_cpu, monkeypatch, asked, threads):
    taken = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    devices.prepare(on_cpu.model_copy(update={"torch_threads": asked}))
    assert taken == [threads]
