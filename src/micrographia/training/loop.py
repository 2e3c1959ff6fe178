"""The one training loop.

A batch and all randomness of a step are functions of (seed, step, process) alone. So a run that was
interrupted, killed or resumed gives, on the CPU, bit for bit the weights of one that was left alone, and no
random state need be saved.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from micrographia.errors import UserError, is_out_of_memory
from micrographia.training import distributed
from micrographia.training.checkpoint import (
    Course,
    data_fingerprint,
    load_best,
    open_folder,
    save_best,
    save_last,
)
from micrographia.training.device import autocast, choose_device, to_device
from micrographia.training.progress import MetricsFile, ProgressDisplay


class Trainable(Protocol):
    """What the loop needs of a model. `training_step` is the algorithm; everything around it is the loop's.

    Optional attributes:

    - ``schedulers: dict[str, LRScheduler]``, each stepped once after every training step;
    - ``ema_networks: Sequence[str]``, the networks whose weights are averaged when ``ema_decay > 0``; the
      loop puts the averaged copies into ``model.ema: dict[str, nn.Module]`` (empty without averaging);
    - ``state() -> dict[str, Tensor]`` and ``load_state(dict)`` for whatever else the next step depends on,
      such as the image pool of a GAN.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]

    def training_step(
        self, batch: Any, step: int, generator: torch.Generator
    ) -> Mapping[str, float | Tensor]:
        """Learn from one batch (already on the device); return the scalars to log.

        The model itself calls ``optimizer.zero_grad()``, ``loss.backward()`` and
        `distributed.optimizer_step`. `generator` lives on the device. The step runs under autocast: on a GPU
        networks may return bfloat16, so call ``.float()`` before an FFT.
        """
        ...


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, where, and how often to look."""

    steps: int = 1000
    """Training steps in all, those before a resume included."""
    log_every: int = 10
    """Steps between rows of metrics.csv; a row holds the means since the row before."""
    checkpoint_every: int = 200
    """Steps between saved states."""
    evaluate_every: int = 100
    """Steps between evaluations; the last step is always evaluated."""
    patience: int = 0
    """Stop after this many evaluations without a better score; 0 = never."""
    seed: int = 0
    """Seed of everything random in the training steps."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the networks; auto is bf16 on GPUs that have it, fp32 elsewhere."""
    ema_decay: float = 0.0
    """Decay per step of the running mean of the weights (0.99 to 0.9999); 0 = no running mean."""

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "checkpoint_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)} is not possible; give at least 1.")
        for name in ("patience", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} = {getattr(self, name)} is not possible; give 0 or more.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay = {self.ema_decay} is not possible; give a number from 0 to below 1.")


@dataclass(frozen=True)
class TrainResult:
    """What became of a training."""

    steps: int
    """Steps taken, those before a resume included."""
    best_step: int | None
    """Step with the lowest score; None without a score."""
    best_score: float | None
    """The lowest score."""
    history: pd.DataFrame
    """The rows of metrics.csv: step, seconds, and every logged quantity."""
    stopped: Literal["done", "early", "interrupted"]
    """Why it ended: all steps done, no better score for `patience` evaluations, or Ctrl-C / SIGTERM."""


class TrainingDiverged(UserError):
    """A loss or a weight became NaN or infinite."""


class OutOfMemory(UserError):
    """A training step did not fit into memory."""


def train(
    model: Trainable,
    batches: Callable[[int], Any],
    config: TrainConfig,
    folder: str | Path,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    score: str | None = None,
    resume: bool = True,
    label: str = "training",
    inputs: Any = (),
) -> TrainResult:
    """Train `model`; leave ``last.safetensors``, ``best.safetensors`` and ``metrics.csv`` in `folder`.

    Parameters
    ----------
    model : Trainable
        Moved to the device; ends as the best state if `score` is given (if there was one, also where the training
        diverges), else as the last.
    batches : callable
        ``batches(step)``, a pure function: arrays or tensors, or tuples, lists, dicts of them. Under
        ``torchrun`` it returns this process's share (`distributed.shard`).
    config : TrainConfig
    folder : path
        Of this training alone (another first batch is refused); created where missing. Under ``torchrun`` all processes must see it.
    evaluate : callable, optional
        ``evaluate(step)`` returns quantities to log, under other names than the training step's. Runs in the
        first process only; it may switch networks to evaluation mode.
    score : str, optional
        The evaluated quantity to minimise: selects the best state and counts for `patience`.
    resume : bool
        Continue from the folder's last state; False starts over and forgets it.
    label : str
        What is trained, for the progress bar; a folder of another label is refused.
    inputs : arrays, numbers and texts, optional
        All else that a training depends on: a folder of others is refused.

    Raises
    ------
    TrainingDiverged
        A loss or weight is not finite any more; the last good state stays in the folder.
    UserError
        No such device, no memory, a folder that cannot be written or holds another training.
    """
    if score is not None and evaluate is None:
        raise ValueError("a score needs an evaluate function that returns it")
    device, folder = choose_device(config.device), Path(folder)
    precision = autocast(device, config.precision)
    distributed.join()
    rank, _ = distributed.rank_and_world()
    for network in model.networks.values():
        network.to(device).train()
    distributed.equalise(model.networks.values())
    averages = _averages(model, config.ema_decay)
    generator = torch.Generator(device)

    data = distributed.from_first(data_fingerprint([batches(0), inputs]))
    course = open_folder(folder, model, averages, resume, label, data)
    metrics = MetricsFile(folder, course.rows, course.step) if rank == 0 else None
    begun = time.monotonic() - course.seconds
    stopped: Literal["done", "early", "interrupted"] = "done"
    pending: list[Mapping[str, float | Tensor]] = []

    def checkpoint() -> None:
        course.seconds = time.monotonic() - begun
        _require_finite(model.networks, course.step, folder)
        if rank == 0:
            save_last(folder, model, averages, course, label)

    def to_best() -> None:
        if score is not None and course.best_step is not None:
            distributed.from_first(None)  # the first process has written the best state
            load_best(folder, model, averages, label)

    with (
        _on_divergence(to_best),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ProgressDisplay(label, config.steps, course.step, silent=rank > 0) as display,
        _deferred_interrupts() as interrupts,
    ):
        if course.step == 0:
            checkpoint()  # a folder that cannot be written shows now, not after the first hour
        while course.step < config.steps:
            if config.patience and course.stale >= config.patience:
                stopped = "early"
                break
            if distributed.any_process(bool(interrupts), device):
                stopped = "interrupted"
                break
            _seed(generator, device, config.seed, course.step, rank)
            with out_of_memory_explained(course.step), precision:
                values = model.training_step(to_device(batches(course.step), device), course.step, generator)
            for scheduler in getattr(model, "schedulers", {}).values():
                scheduler.step()
            for name, average in averages.items():
                average.update_parameters(model.networks[name])
            pending.append({k: v.detach() if isinstance(v, Tensor) else v for k, v in values.items()})
            course.step += 1

            last = course.step == config.steps
            log = last or course.step % config.log_every == 0
            look = evaluate is not None and (last or course.step % config.evaluate_every == 0)
            save = last or course.step % config.checkpoint_every == 0
            # A GPU is only waited for where its numbers are needed.
            if log or look or save or device.type == "cpu":
                _collect(pending, course, device, folder)
            row: dict[str, Any] = {}
            if log:
                row |= _means(course.window)
                course.window.clear()
            if look and evaluate is not None:
                found = distributed.from_first(dict(evaluate(course.step)) if rank == 0 else None)
                if clash := row.keys() & found.keys():
                    raise ValueError(f"evaluate and training_step both report {sorted(clash)}")
                row |= {name: float(value) for name, value in found.items()}
                for network in model.networks.values():
                    network.train()
                if score is not None and _improves(course, row[score]) and rank == 0:
                    save_best(folder, model, averages, course, label)
            if metrics and row:
                metrics.add({"step": course.step, "seconds": round(time.monotonic() - begun, 3), **row})
            display.update(course.step, row)
            if save:
                checkpoint()
        if stopped != "done":
            _collect(pending, course, device, folder)
            checkpoint()
    if metrics:
        metrics.close()
    if stopped != "interrupted":
        to_best()
    return TrainResult(course.step, course.best_step, course.best_score, pd.DataFrame(course.rows), stopped)


def _seed(generator: torch.Generator, device: torch.device, seed: int, step: int, rank: int) -> None:
    """Seed the step's own generator and PyTorch's global ones (dropout uses those)."""
    own, shared = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint64) >> np.uint64(1)
    generator.manual_seed(int(own))
    torch.default_generator.manual_seed(int(shared))  # torch.manual_seed takes 1 ms on a CPU-only run
    if device.type == "cuda":
        torch.cuda.manual_seed(int(shared))
    elif device.type == "mps":
        torch.mps.manual_seed(int(shared))


def _averages(model: Trainable, decay: float) -> dict[str, AveragedModel]:
    """Make the running means of the weights, and show them to the model as ``model.ema``."""

    def update(averaged: Any, current: Any, count: Any) -> None:
        # A short memory at first, or the untrained weights would linger for 1 / (1 - decay) steps.
        get_ema_multi_avg_fn(min(decay, (1 + int(count)) / (10 + int(count))))(averaged, current, count)

    names = getattr(model, "ema_networks", ()) if decay else ()
    averages = {name: AveragedModel(model.networks[name], multi_avg_fn=update) for name in names}
    for average in averages.values():
        average.eval().requires_grad_(False)
    model.ema = {name: average.module for name, average in averages.items()}  # type: ignore[attr-defined]
    return averages


def _collect(
    pending: list[Mapping[str, float | Tensor]], course: Course, device: torch.device, folder: Path
) -> None:
    """Move the latest quantities to the window, averaged over processes; stop at NaN or infinity."""
    first = course.step - len(pending) + 1
    for step, values in enumerate(pending, first):
        numbers = distributed.mean_over_processes([float(v) for v in values.values()], device)
        named = dict(zip(values, numbers, strict=True))
        for name, number in named.items():
            if not isfinite(number):
                raise _diverged(f"'{name}' became {number} in step {step}", folder)
        course.window.append(named)
    pending.clear()


def _means(window: list[dict[str, float]]) -> dict[str, float]:
    """Average each quantity over the steps that reported it."""
    names = dict.fromkeys(name for values in window for name in values)
    return {name: float(np.mean([v[name] for v in window if name in v])) for name in names}


def _improves(course: Course, value: float) -> bool:
    """Note a score; whether it is the best so far. NaN never is."""
    if isfinite(value) and (course.best_score is None or value < course.best_score):
        course.best_step, course.best_score, course.stale = course.step, value, 0
        return True
    course.stale += 1
    return False


def _require_finite(networks: Mapping[str, nn.Module], step: int, folder: Path) -> None:
    """Refuse to save weights that are NaN or infinite: they would replace the last good state."""
    for name, network in networks.items():
        if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
            raise _diverged(f"a weight of the network '{name}' became NaN or infinite by step {step}", folder)


@contextmanager
def _on_divergence(to_best: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except TrainingDiverged:
        to_best()
        raise


def _diverged(what: str, folder: Path) -> TrainingDiverged:
    return TrainingDiverged(
        f"The training diverged: {what}. The last good state is kept in {folder}. Try a lower learning rate "
        "(in another folder), and check the training images for extreme values."
    )


@contextmanager
def out_of_memory_explained(step: int) -> Iterator[None]:
    """Raise `OutOfMemory` in place of whatever the device's allocator raises in a training step."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"Out of memory in step {step + 1}: use a smaller batch or patch, or accumulate gradients "
                "over several parts of the batch."
            ) from error
        raise


@contextmanager
def _deferred_interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM so that the current step can be finished; a second one acts at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
