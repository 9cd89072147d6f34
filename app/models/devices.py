"""The device a model runs on: which one, how its memory stands, and what its errors mean.

torch is here once a model has brought it, or the device is to be found out: a model of one's own may need none, and a
process that does without is there seconds sooner.
"""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from app.errors import DeviceLost
from app.settings import Settings


def choose_device(wanted: str) -> str:
    """`auto` takes CUDA, then MPS, then the CPU. One process has one GPU: CUDA_VISIBLE_DEVICES says which."""
    if kind(wanted) == "cpu":
        return wanted
    # Of any other device it is torch that tells the name and the memory.
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def kind(device: str) -> str:
    """`cuda:1` is of the kind `cuda`."""
    return device.partition(":")[0]


def prepare(settings: Settings) -> bool:
    """Fix what changes the bytes of a picture; False while there is no torch."""
    if not (torch := _torch()):
        return False
    torch.set_num_threads(settings.torch_threads or _cores())
    # Chosen anew by timing in each process, kernels would differ from one process to the next.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return True


def _torch() -> Any:
    return sys.modules.get("torch")


def _cores() -> int:
    """Those that this process may use; macOS does not tell them apart."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: str) -> str:
    """The device by its maker's name, or the CPU with torch's number of threads, which changes a picture's bytes."""
    if kind(device) == "cuda":
        return f"{device} ({_torch().cuda.get_device_name(device)})"
    return f"cpu ({_torch().get_num_threads()} threads)" if device == "cpu" and _torch() else device


def memory_bytes(device: str) -> int:
    """What this process holds now: memory of the GPU, or of the machine where there is none."""
    if kind(device) == "cuda":
        return int(_torch().cuda.memory_reserved(device))
    if kind(device) == "mps":
        return int(_torch().mps.driver_allocated_memory())
    return int(psutil.Process().memory_info().rss)


def weights_bytes(pipeline: Any) -> int:
    """Bytes of all weights of a pipeline's parts."""
    parts = [part for part in pipeline.components.values() if isinstance(part, _torch().nn.Module)]
    tensors = {id(t): t for part in parts for t in (*part.parameters(), *part.buffers())}
    return sum(t.nbytes for t in tensors.values())


def release() -> None:
    """Give memory that nothing uses any more back to the device."""
    gc.collect()
    if not (torch := _torch()):
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device had not enough memory: torch has one error for CUDA, and sentences for the others."""
    torch = _torch()
    return (torch and isinstance(error, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(sentence in str(error) for sentence in _OUT_OF_MEMORY)
    )


# cuDNN finds no engine where none of them gets the memory to work in.
_OUT_OF_MEMORY = (
    # What CUDA itself says where torch's own bookkeeping has not seen it come: no fault of the device.
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",
    "MPS backend out of memory",
    "DefaultCPUAllocator: ",
)


def is_device_fault(error: BaseException) -> bool:
    """Whether the device failed, so that nothing this process does with it can be trusted any more."""
    if is_out_of_memory(error):
        return False
    torch = _torch()
    return (torch and isinstance(error, torch.AcceleratorError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _DEVICE_FAULTS)
    )


_DEVICE_FAULTS = ("CUDA error", "cuDNN error")


@contextmanager
def answered_for() -> Iterator[None]:
    """Raises DeviceLost in place of a fault of the device."""
    try:
        yield
    except Exception as error:
        if is_device_fault(error):
            raise DeviceLost(str(error).strip().partition("\n")[0]) from error
        raise
