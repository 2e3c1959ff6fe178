"""A training's states on disk: the last one, to resume from, and the best one, to use."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import AveragedModel

from micrographia.errors import UserError
from micrographia.nets.weights import load_tree, save_tree
from micrographia.training import distributed

if TYPE_CHECKING:
    from micrographia.training.loop import Trainable


@dataclass
class Course:
    """How far the training has come: the part of a checkpoint that is no tensor."""

    data: str
    """Fingerprint of the first batch and of what the caller adds: a folder is not resumed with other inputs."""
    step: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_score: float | None = None
    stale: int = 0
    """Evaluations since the best one."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    window: list[dict[str, float]] = field(default_factory=list)
    """The quantities of each step since the last row."""


def data_fingerprint(batch: Any) -> str:
    """Return twelve hexadecimal digits that stand for arrays, numbers and texts, nested or not."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, dict):
            part = list(part.values())
        if isinstance(part, list | tuple):
            for inner in part:
                add(inner)
        elif isinstance(part, str):
            digest.update(part.encode())
        else:
            array = torch.as_tensor(part).detach().cpu().contiguous().numpy()
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())

    add(batch)
    return digest.hexdigest()[:12]


def open_folder(
    folder: Path, model: Trainable, averages: dict[str, AveragedModel], resume: bool, label: str, data: str
) -> Course:
    """Load the last state if there is one to resume, else clear the way for a new training."""
    rank, _ = distributed.rank_and_world()
    last = folder / "last.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if rank == 0 and not resume:
            last.unlink(missing_ok=True)
            (folder / "best.safetensors").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be used as the training folder ({error}).") from error
    course = Course(data)
    if distributed.from_first(last.exists()):
        course = _load_last(last, model, averages, label, data)
    distributed.from_first(None)  # nobody goes on to write before everybody has read
    return course


def save_last(
    folder: Path, model: Trainable, averages: dict[str, AveragedModel], course: Course, label: str
) -> None:
    """Save everything that the next step depends on."""
    tree = {
        "course": asdict(course),
        **_networks_tree(model, averages),
        "optimizers": {name: o.state_dict() for name, o in model.optimizers.items()},
        "schedulers": {name: s.state_dict() for name, s in getattr(model, "schedulers", {}).items()},
        "state": model.state() if hasattr(model, "state") else {},
    }
    save_tree(folder / "last.safetensors", tree, label)


def _load_last(
    path: Path, model: Trainable, averages: dict[str, AveragedModel], label: str, data: str
) -> Course:
    tree = load_tree(path, label)
    if tree["course"].get("data") != data:
        raise UserError(
            f"{path.parent}: holds a training on other data, or with other settings or another seed; choose another folder, "
            "or start over without resuming."
        )
    _load_networks(tree, model, averages, path.parent)
    try:
        for name, optimizer in model.optimizers.items():
            optimizer.load_state_dict(tree["optimizers"][name])
        for name, scheduler in getattr(model, "schedulers", {}).items():
            scheduler.load_state_dict(tree["schedulers"][name])
        if hasattr(model, "load_state"):
            model.load_state(tree["state"])
    except (KeyError, ValueError) as error:
        raise _other_training(path.parent, error) from error
    return Course(**tree["course"])


def save_best(
    folder: Path, model: Trainable, averages: dict[str, AveragedModel], course: Course, label: str
) -> None:
    """Save the networks and their running means as the best so far."""
    tree = {"step": course.step, "score": course.best_score, **_networks_tree(model, averages)}
    save_tree(folder / "best.safetensors", tree, label)


def load_best(folder: Path, model: Trainable, averages: dict[str, AveragedModel], label: str) -> None:
    """Put the best state's weights into the networks and their running means."""
    _load_networks(load_tree(folder / "best.safetensors", label), model, averages, folder)


def _networks_tree(model: Trainable, averages: dict[str, AveragedModel]) -> dict[str, Any]:
    return {
        "networks": {name: network.state_dict() for name, network in model.networks.items()},
        "ema": {name: average.state_dict() for name, average in averages.items()},
    }


def _load_networks(
    tree: dict[str, Any], model: Trainable, averages: dict[str, AveragedModel], folder: Path
) -> None:
    try:
        for name, network in model.networks.items():
            network.load_state_dict(tree["networks"][name])
        for name, average in averages.items():
            average.load_state_dict(tree["ema"][name])
    except (KeyError, RuntimeError) as error:
        raise _other_training(folder, error) from error


def _other_training(folder: Path, error: Exception) -> UserError:
    detail = str(error).splitlines()[-1].strip()
    return UserError(
        f"{folder}: holds the training of a model with another layout ({detail}); "
        "choose another folder, or start over without resuming."
    )
