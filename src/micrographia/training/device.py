"""Where the numbers are crunched: device, precision, threads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from micrographia.errors import UserError, did_you_mean


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; ``"auto"`` takes CUDA, then Apple's MPS, then the CPU.

    Under ``torchrun`` each process gets the GPU of its local rank.

    Raises
    ------
    UserError
        The name is unknown, or the device is not there.
    """
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if present[device])
    kind, _, index = name.partition(":")
    if kind not in present:
        raise UserError(f"There is no device called '{name}'.{did_you_mean(kind, ['auto', *present])}")
    if not present[kind]:
        raise UserError(
            f"The device '{name}' was asked for, but PyTorch {torch.__version__} sees none on this machine; "
            "choose device 'auto' or 'cpu', or install the PyTorch build for that device."
        )
    if kind != "cuda":
        return torch.device(kind)
    number = int(index) if index.isdigit() else int(os.environ.get("LOCAL_RANK", 0))
    if number >= torch.cuda.device_count():
        raise UserError(f"GPU {number} was asked for, but there are only {torch.cuda.device_count()}.")
    return torch.device("cuda", number)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a training step runs: bfloat16 where it pays, plain float32 elsewhere.

    ``"auto"`` is bfloat16 on GPUs with hardware for it. On a CPU bfloat16 is many times slower than float32
    (14 times on the CycleGAN's layers), so asking for it there is refused.
    """
    if precision == "bf16" and device.type != "cuda":
        raise UserError(
            f"Precision 'bf16' only pays on a CUDA GPU, not on '{device.type}'; use 'auto' or 'fp32'."
        )
    enabled = precision != "fp32" and device.type == "cuda"
    if enabled and precision == "auto":
        enabled = torch.cuda.is_bf16_supported(including_emulation=False)
    # No cache: it would keep a weight's bfloat16 copy although an optimiser changed it within the same step.
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False)


def to_device(batch: Any, device: torch.device) -> Any:
    """Return `batch` (tensors, arrays, and tuples, lists, dicts of them) on `device`; the rest untouched."""
    if isinstance(batch, np.ndarray):
        batch = torch.from_numpy(np.ascontiguousarray(batch))
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def set_threads() -> int:
    """Set PyTorch's CPU threads and return their number: ``OMP_NUM_THREADS``, else the cores we may use.

    More threads than free physical cores make PyTorch's threads spin on each other's barriers. Cores are
    counted without hyper-threads, within the process's affinity and its container's quota.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    count = int(given) if given.isdigit() and int(given) > 0 else usable_cores()
    torch.set_num_threads(count)
    return count


def usable_cores() -> int:
    """Count the physical cores that this process may use."""
    try:
        logical = os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
    siblings = [Path(f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list") for i in logical]
    try:
        cores = len({path.read_text() for path in siblings})
    except OSError:
        cores = len(logical)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or its quota is "max"
        pass
    return cores
