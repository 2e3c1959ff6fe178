"""Models and training states on disk: one safetensors file whose header holds the rest as JSON.

No pickle, so that opening a stranger's model runs no code; one file, so that a rename makes it whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from micrographia.errors import UserError

#: Raised by one whenever an older reader could misread a newer file.
FORMAT_VERSION = 1
_HEADER = "micrographia"


def save_model(
    path: str | os.PathLike, networks: Mapping[str, nn.Module], config: dict[str, Any], kind: str
) -> None:
    """Write trained networks and the configuration that rebuilds them to one file.

    Parameters
    ----------
    path : path
        Target, by convention ``NAME.safetensors``; replaced at once when everything is written.
    networks : dict of modules
    config : dict
        Plain values (what ``dataclasses.asdict`` returns): numbers, strings, None, lists, tuples, dicts.
    kind : str
        What the model is (``"fcn"``, ``"cyclegan"``); `load_model` refuses any other.

    Raises
    ------
    UserError
        The file cannot be written (folder missing or protected, disk full); an earlier file stays intact.
    """
    tree = {"networks": {name: net.state_dict() for name, net in networks.items()}, "config": config}
    save_tree(path, tree, kind)


def load_model(path: str | os.PathLike, kind: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what `save_model` wrote: the state dictionaries (on the CPU) by network, and the configuration.

    Raises
    ------
    UserError
        The file is missing, truncated, not ours, of another kind, or written in a newer format.
    """
    tree = load_tree(path, kind)
    return tree["networks"], tree["config"]


@contextmanager
def built_alike(path: str | os.PathLike) -> Iterator[None]:
    """Say of a model that cannot be rebuilt from what `load_model` read that another version wrote it."""
    try:
        yield
    except (KeyError, TypeError, RuntimeError) as error:
        detail = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise UserError(
            f"{path}: written by another version of micrographia, whose models were built otherwise ({detail}); "
            "train the model again."
        ) from error


def save_tree(path: str | os.PathLike, tree: dict[str, Any], kind: str) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values, atomically.

    Raises
    ------
    UserError
        The file cannot be written; an earlier file stays intact.
    TypeError
        A value is neither a tensor nor expressible in JSON.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    content = _strip_tensors(tree, "", tensors)
    header = {"format": FORMAT_VERSION, "kind": kind, "written_by": _package_version(), "content": content}
    with _replacing(path) as temporary, temporary.open("wb") as file:
        file.write(save(tensors, metadata={_HEADER: json.dumps(header)}))
        file.flush()
        os.fsync(file.fileno())  # else a power cut could leave the new name with no content


def load_tree(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """Read what `save_tree` wrote; tensors come back on the CPU, bit for bit. Raises as `load_model`."""
    path = Path(path)
    with _opened(path) as (file, text):
        header = _read_header(path, text, kind)
        # Cloned: the originals may be windows into the file, which a later save replaces.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return _restore_tensors(header["content"], tensors)


def read_model_note(path: str | os.PathLike) -> dict[str, Any]:
    """What a model file says about itself: its kind, the version that wrote it, its settings.

    Of lists longer than 20 (curves, covariances) only the length is told, of tensors nothing. Raises as
    `load_model`.
    """
    path = Path(path)
    with _opened(path) as (_, text):
        header = _read_header(path, text)
    content = header["content"]
    settings = content.get("config", {}) if isinstance(content, dict) else {}
    return {
        "software": f"micrographia {header.get('written_by', '(unknown)')}",
        "model": header["kind"],
        "settings": _brief(_restore_tensors(settings, defaultdict(lambda: None))),
    }


def _brief(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _brief(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_brief(v) for v in value] if len(value) <= 20 else f"{len(value)} values"
    return value


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, str]]:
    """Open a model file; yield it with the text of its header."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such model file; check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _HEADER not in metadata:
                raise UserError(f"{path}: not written by Micrographia; give a model file that it saved.")
            yield file, metadata[_HEADER]
    except (SafetensorError, OSError) as error:
        if path.suffix != ".safetensors":
            raise UserError(f"{path}: is no model file (NAME.safetensors).") from error
        raise UserError(
            f"{path}: truncated, damaged or not a model file ({error}); copy or train it again."
        ) from error


def _read_header(path: Path, text: str, kind: str | None = None) -> dict[str, Any]:
    try:
        header = json.loads(text)
        written, found = int(header["format"]), str(header["kind"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its header is damaged; copy or train the model again.") from error
    if written > FORMAT_VERSION:
        raise UserError(
            f"{path}: written in format {written} by micrographia {header.get('written_by', '(newer)')}, but "
            f"this version reads formats up to {FORMAT_VERSION}; update micrographia."
        )
    if kind is not None and found != kind:
        raise UserError(f"{path}: holds a '{found}', but a '{kind}' is needed here; give the other file.")
    return header


def _strip_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON; its tensors go to `tensors` and leave their name behind."""
    if isinstance(value, Tensor):
        while name in tensors:  # {"a": {"b.c": x}, "a.b": {"c": y}}
            name += "'"
        # Cloned, because safetensors refuses tensors that share memory (tied weights).
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"$tensor": name}
    if isinstance(value, Mapping):
        # As pairs: the keys of an optimiser's state are integers, which JSON would turn into strings.
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _strip_tensors(v, f"{name}.{key}".lstrip("."), tensors) for key, v in value.items()}
        return {"$items": [[k, _strip_tensors(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [_strip_tensors(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    return value.item() if isinstance(value, np.generic) else value


def _restore_tensors(value: Any, tensors: Mapping[str, Tensor | None]) -> Any:
    if isinstance(value, list):
        return [_restore_tensors(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$items" in value:
        return {key: _restore_tensors(v, tensors) for key, v in value["$items"]}
    if "$tuple" in value:
        return tuple(_restore_tensors(v, tensors) for v in value["$tuple"])
    return {key: _restore_tensors(v, tensors) for key, v in value.items()}


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place on success and vanishes on failure."""
    # One fixed name: what a killed process left behind is overwritten, not collected.
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error}); check the folder and the free space."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _package_version() -> str:
    try:
        return version("micrographia")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


def weights_key(network: nn.Module) -> str:
    """Return twelve hexadecimal digits that stand for a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
