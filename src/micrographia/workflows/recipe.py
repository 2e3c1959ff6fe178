"""Recipes: everything a run depends on, as one nested dataclass, in TOML and on the command line.

Defaults are the dataclasses' own; a built-in recipe changes a few of them, a file changes more, ``--set``
comes last.
"""

from __future__ import annotations

import ast
import codecs
import functools
import inspect
import itertools
import json
import math
import textwrap
import tomllib
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from micrographia.detect.finder import DetectConfig
from micrographia.errors import LARGEST_SEED, UserError, check_ranges, did_you_mean
from micrographia.simulate.degrade import NAMES as CONDITIONS
from micrographia.simulate.degrade import Conditions
from micrographia.simulate.fit import FitConfig
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import Specimen
from micrographia.translate.cyclegan import TranslateConfig
from micrographia.workflows.explore_recipe import ExploreRecipe
from micrographia.workflows.synthesize_recipe import SynthesizeRecipe

#: Beyond this, imaging conditions mean nothing, and images overflow.
LARGEST_CONDITION = 1e6


@dataclass(frozen=True)
class LibraryConfig:
    """The labelled images that the networks learn from."""

    images: int = 300
    """Number of simulated images."""
    size_px: int = 192
    """Edge of an image at the working sampling."""
    train_on: Literal["both", "fitted", "translated"] = "both"
    """Images for the detector: simulated under the fitted conditions, those translated by the CycleGAN, or
    both."""

    def __post_init__(self) -> None:
        check_ranges("library", self, images=(8, math.inf), size_px=(64, 4096))


@dataclass(frozen=True)
class Recipe:
    """One run of `micrographia find`, completely."""

    journey: Literal["find"] = "find"
    """Which journey the recipe is for."""
    name: str = "wse2"
    """What the recipe is called."""
    seed: int = 0
    """Fixes everything random."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where networks are trained and applied; auto takes a GPU when there is one."""
    sampling_A: float = 0.2
    """Working sampling, Å per pixel: images are resampled to it, simulations made at it."""
    pixel_size_A: float = 0.0
    """Pixel size of all input images, Å; 0 = from the files, checked and, where they are wrong or silent,
    replaced by the lattice."""
    trust_lattice_percent: float = 2.0
    """A pixel size from a file that disagrees with the lattice by more than this is replaced by the
    lattice's; 100 = never. One that is off by a factor of 1.6 or more is kept, with a warning: the
    lattice may be another one."""
    typical_spot_A: float = 0.0
    """Width (FWHM) assumed for the spots of isolated atoms to scale images of unknown pixel size, Å;
    0 = do not assume."""
    tolerance_A: float = 1.0
    """Largest distance between a found and a true site, Å."""
    inception_weights: str = ""
    """File of the Inception weights that torch-fidelity publishes: distances to the experiment are those of its features,
    of images each scaled by itself; empty = physical features."""
    specimen: Specimen = field(default_factory=Specimen)
    """What is under the beam."""
    optics: Optics = field(default_factory=Optics)
    """The microscope's nominal settings."""
    fit: FitConfig = field(default_factory=FitConfig)
    """Fitting the imaging conditions to the images."""
    library: LibraryConfig = field(default_factory=LibraryConfig)
    """The training images."""
    translate: TranslateConfig = field(default_factory=TranslateConfig)
    """The CycleGAN."""
    detect: DetectConfig = field(default_factory=DetectConfig)
    """The detector."""

    def __post_init__(self) -> None:
        check_ranges(
            "",
            self,
            seed=(0, LARGEST_SEED),
            sampling_A=(0.02, 2),
            pixel_size_A=(0, 1e6),
            trust_lattice_percent=(0, 1000),
            typical_spot_A=(0, 100),
            tolerance_A=(0.001, 100),
        )
        _check_prior(self.fit.prior, self.optics)


def _check_prior(prior: Conditions, optics: Optics) -> None:
    """Make sure that images can be made at both ends of every range, before hours are spent on others."""
    for name in CONDITIONS:
        ends = getattr(prior, name)
        if max(map(abs, ends)) > LARGEST_CONDITION:
            raise UserError(f"fit.prior.{name} = {ends}: give ends within {LARGEST_CONDITION:g}.")
    for name, nominal in (("defocus_A", optics.defocus_A), ("source_size_A", 0.0)):
        ends = getattr(prior, name)
        try:
            for end in ends:
                replace(optics, **{name: nominal + end})
        except UserError as error:
            raise UserError(f"fit.prior.{name} = {ends}: {error}") from error


#: What each built-in recipe changes. Optics are nominal; fitted conditions vary about them.
BUILT_IN: dict[str, dict[str, Any]] = {
    "wse2": {
        "specimen": {"material": "WSe2", "defects": {"vacancy-1Se": 0.04, "vacancy-2Se": 0.02}},
        "optics": {"energy_keV": 80.0, "convergence_mrad": 25.2},
    },
    "mos2": {
        "specimen": {"material": "MoS2", "defects": {"vacancy-1S": 0.04, "vacancy-2S": 0.02}},
        "optics": {"energy_keV": 60.0, "convergence_mrad": 31.0},
    },
    "graphene-si": {
        "sampling_A": 0.15,
        "tolerance_A": 0.75,
        "specimen": {"material": "graphene", "defects": {"Si": 0.03}, "holes": 0.25},
        "optics": {"energy_keV": 60.0, "convergence_mrad": 31.0, "inner_mrad": 86.0},
        "fit": {
            "prior": {
                "contamination": [0.0, 4.0],
                "speckle": [0.0, 1.5],
                "counts_per_A2": [1.0, 1000.0],
            }
        },
    },
    "srtio3": {
        "specimen": {"material": "SrTiO3", "defects": {"vacancy-1Sr": 0.03}},
        "optics": {"energy_keV": 200.0, "convergence_mrad": 22.0, "inner_mrad": 70.0},
    },
    "single-atoms": {
        "sampling_A": 0.3,
        "tolerance_A": 1.5,
        "typical_spot_A": 1.3,
        "specimen": {"material": "single-atoms", "element": "Re", "holes": 0.0},
        "optics": {"energy_keV": 200.0, "convergence_mrad": 22.0, "inner_mrad": 70.0},
        # Films are many times thicker than the heavy atoms' 2 nm support that is simulated atom by atom.
        "fit": {
            "prior": {
                "background": [0.0, 40.0],
                "speckle": [0.0, 8.0],
                "contamination": [0.0, 8.0],
                "counts_per_A2": [1.0, 1000.0],
                "source_size_A": [0.4, 2.0],
                "line_jitter_A": [0.005, 0.6],
                "readout": [0.005, 10.0],
                "line_gain": [0.0, 2.0],
            }
        },
    },
    "explore": {"journey": "explore"},
    "explore-graphene": {
        "journey": "explore",
        "material": "graphene",
        # In images as noisy as those of graphene are, the fit of each atom by itself moves it away from its place.
        "atoms": {"bond_A": 1.42, "refine": "none"},
        # Order alone, and little enough training that the latents hold what matters most. Every rotation is taken out,
        # or they would tell the direction in which something is missing.
        "patches": {"of": "positions", "window_A": 10.5, "size_px": 20},
        "latent": {"symmetry": 6, "steps": 750, "network": {"encoder": "conv"}},
    },
    "stylegan2-ada": {"journey": "synthesize"},
    "r3gan": {"journey": "synthesize", "gan": {"loss": "relativistic", "r1_every": 1, "path_length": 0.0}},
    # As it is taught: Radford's layout and optimiser, nothing of what came later.
    "dcgan": {
        "journey": "synthesize",
        "gan": {
            "network": "dcgan",
            "latent": 100,
            "width": 64,
            "learning_rate": 2e-4,
            "critic_rate": 1.0,
            "hold": 1.0,
            "variety": 0.0,
            "beta1": 0.5,
            "r1": 0.0,
            "average_images": 0.0,
            "augment": {"target": 0.0},
        },
    },
}
#: What a recipe's key `journey` stands for.
JOURNEYS: dict[str, type] = {"find": Recipe, "explore": ExploreRecipe, "synthesize": SynthesizeRecipe}


def built_in(name: str) -> Any:
    """Return the built-in recipe `name`, of the journey that it is for.

    Raises
    ------
    UserError
        There is none of that name; the message lists them.
    """
    if name not in BUILT_IN:
        raise UserError(f"There is no built-in recipe '{name}'.{did_you_mean(name, BUILT_IN)}")
    return _of_journey({"name": name, **BUILT_IN[name]})


def _of_journey(values: dict[str, Any]) -> Any:
    journey = values.get("journey", "find")
    if journey not in JOURNEYS:
        raise UserError(
            f"recipe: journey = {journey!r} is not possible.{did_you_mean(str(journey), JOURNEYS)}"
        )
    return from_dict(JOURNEYS[journey], values)


def load_recipe(name_or_path: str | Path, changes: list[str] | tuple[str, ...] = ()) -> Any:
    """Read a recipe by built-in name or from a TOML file, with changes ``key.sub=value`` on top.

    Returns the dataclass of its journey (`JOURNEYS`).
    """
    if str(name_or_path) in BUILT_IN:
        values: dict[str, Any] = {"name": str(name_or_path), **_copied(BUILT_IN[str(name_or_path)])}
    else:
        path = Path(name_or_path)
        if not path.is_file():
            hint = did_you_mean(str(name_or_path), BUILT_IN)
            raise UserError(f"{name_or_path}: neither a recipe file nor a built-in recipe.{hint}")
        try:
            values = tomllib.loads(_text(path))
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{path}: not a readable TOML file ({error}).") from error
    for change in changes:
        _apply_change(values, change)
    return _of_journey(values)


def _text(path: Path) -> str:
    """A text file in UTF-8, or in the UTF-16 with a mark that PowerShell's ``>`` writes."""
    raw = path.read_bytes()
    marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a readable TOML file: not in UTF-8; save it as UTF-8.") from error


def _copied(values: dict) -> dict:
    return {k: _copied(v) if isinstance(v, dict) else v for k, v in values.items()}


def _apply_change(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {change}: write key=value, for example --set translate.steps=500.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word: --set specimen.material=MoS2
    *path, last = _split_key(key.strip())
    alone = {f.name for f in fields(Specimen)} - {f.name for f in fields(Recipe)}
    if not path and last in alone and values.get("journey", "find") == "find":
        path = ["specimen"]  # --set element=Re
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {change}: '{part}' is a single value, not a section.")
    values[last] = value


def _split_key(key: str) -> list[str]:
    """Split at dots outside quotes: ``specimen.defects."vacancy-1Se"``."""
    parts, quoted, current = [], False, ""
    for character in key:
        if character == '"':
            quoted = not quoted
        elif character == "." and not quoted:
            parts.append(current)
            current = ""
        else:
            current += character
    return [*parts, current]


# ------------------------------------------------------------------------------- plain values <-> dataclasses


def from_dict(cls: type, values: dict[str, Any], where: str = "") -> Any:
    """Build a (nested) dataclass from plain values.

    Raises
    ------
    UserError
        Unknown key (the nearest valid one is named), wrong type, or a value out of range.
    """
    if not isinstance(values, dict):
        raise UserError(f"recipe: '{where}' must be a section with keys, not {values!r}.")
    kinds = typing.get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    for key in values:
        if key not in names:
            place = f" in section [{where}]" if where else ""
            raise UserError(f"recipe: there is no key '{key}'{place}.{did_you_mean(key, names)}")
    built = {k: _convert(kinds[k], v, f"{where}.{k}" if where else k) for k, v in values.items()}
    return cls(**built)


def _convert(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return from_dict(kind, value, where)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise UserError(
                f"recipe: {where} = {value!r} is not possible.{did_you_mean(str(value), map(str, arguments))}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(arguments):
            raise UserError(
                f"recipe: {where} = {value!r}: give a list of {len(arguments)} values, [low, high]."
            )
        return tuple(_convert(a, v, where) for a, v in zip(arguments, value, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f'recipe: {where} = {value!r}: give a table, for example {{"name" = 0.02}}.')
        return {str(k): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin in (typing.Union, types.UnionType):
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UserError(f"recipe: {where} = {value}: give a finite number.")
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value
    names = {float: "a number", int: "a whole number", str: "a text in quotes", bool: "true or false"}
    unit = _unit(where) if kind in (int, float) else ""
    raise UserError(f"recipe: {where} = {value!r}: give {names.get(kind, kind)}{unit}.")


def _unit(key: str) -> str:
    for ending, unit in (
        ("_A", "Å"),
        ("_keV", "keV"),
        ("_mrad", "mrad"),
        ("_deg", "degrees"),
        ("_px", "pixels"),
    ):
        if key.endswith(ending):
            return f" in {unit}, without the unit"
    return ""


def to_dict(recipe: Any) -> dict[str, Any]:
    """Return plain nested values (tuples become lists)."""
    return json.loads(json.dumps(asdict(recipe)))


def differences(a: Any, b: Any) -> list[str]:
    """Name the keys in which two recipes differ, with both values."""

    def flat(values: dict, prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for k, v in values.items():
            out |= flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v}
        return out

    x, y = flat(to_dict(a)), flat(to_dict(b))
    return [f"{k}: {x.get(k)} -> {y.get(k)}" for k in sorted(x.keys() | y.keys()) if x.get(k) != y.get(k)]


# ------------------------------------------------------------------------------------------------------- TOML


@functools.cache
def field_help(cls: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    out = {}
    for this, following in itertools.pairwise(body):
        if (
            isinstance(this, ast.AnnAssign)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            out[this.target.id] = " ".join(str(following.value.value).split())  # type: ignore[union-attr]
    return out


def to_toml(recipe: Any, comments: bool = True, section: str = "") -> str:
    """Write a recipe as TOML; `comments` puts each field's help above it."""
    lines: list[str] = []
    nested: list[str] = []
    kind: type = type(recipe)
    if not section and comments:
        lines += ["# A Micrographia recipe. Every key has a default: delete what you do not change.", ""]
    for f in fields(recipe):
        value, text = getattr(recipe, f.name), field_help(kind).get(f.name, "")
        path = f"{section}.{f.name}" if section else f.name
        if is_dataclass(value):
            head = [f"# {text}"] if comments and text else []
            nested += ["", *head, f"[{path}]", to_toml(value, comments, path).rstrip("\n")]
            continue
        if comments and text:
            lines += [f"# {line}" for line in textwrap.wrap(text, 100)]
        lines.append(f"{f.name} = {_toml_value(value)}")
    return "\n".join([*lines, *nested]) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(k)} = {_toml_value(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml_value(v) for v in value)}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
