"""What a latent space is made of: a list of blocks, each one thing that varies between patches.

Pose blocks (`Rotation`, `Translation`, `Scale`) move the decoder's coordinates; the others make up the code
that says what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from numbers import Integral

from micrographia.errors import UserError

#: Widest cell, in degrees, that one candidate angle covers.
CELL_DEG = 24.0


def _whole(number: object, least: int) -> bool:
    return isinstance(number, Integral) and int(number) >= least


@dataclass(frozen=True)
class Capacity:
    """How many nats a continuous code may carry: none until `opens`, then growing linearly to `nats`.

    The schedule C_z(t) of joint models: what is discrete is learnt before the continuous code can absorb it.
    Information beyond C_z(t) costs `weight` per nat (Burgess et al. 2018; Dupont 2018), less costs nothing.
    """

    nats: float = 12.0
    opens: float = 0.4
    """Fraction of the training until which the code is closed."""
    full: float = 0.8
    """Fraction of the training at which it may carry `nats`."""
    weight: float = 30.0

    def __post_init__(self) -> None:
        if self.nats <= 0 or self.weight < 0 or not 0 <= self.opens < self.full <= 1:
            raise UserError(f"{self} is not possible: nats > 0, weight >= 0 and 0 <= opens < full <= 1.")

    def at(self, progress: float) -> float:
        """C_z at a fraction `progress` of the training."""
        return self.nats * min(max((progress - self.opens) / (self.full - self.opens), 0.0), 1.0)


@dataclass(frozen=True)
class Continuous:
    """`n` numbers with a standard normal prior."""

    n: int = 2
    beta: float = 1.0
    """Weight of the Kullback-Leibler term; 0 with `variational` False is a plain autoencoder."""
    variational: bool = True
    capacity: Capacity | None = None

    def __post_init__(self) -> None:
        if not _whole(self.n, 1):
            raise UserError(
                f"Continuous({self.n}): a code needs a whole number, at least 1; leave the block out instead."
            )
        if self.beta < 0:
            raise UserError(f"Continuous: beta = {self.beta} is not possible; give 0 or more.")


@dataclass(frozen=True)
class Rotation:
    """An angle, uniform within ± `range_deg`; 180 is the whole circle."""

    range_deg: float = 180.0

    def __post_init__(self) -> None:
        if not 0 < self.range_deg <= 180:
            raise UserError(f"Rotation: range_deg = {self.range_deg} is not possible; give 0 to 180 degrees.")

    @property
    def span_deg(self) -> float:
        """Candidates lie within ± this: what is upright is the model's choice, and may be off the middle."""
        return min(self.range_deg + CELL_DEG / 2, 180.0)

    @property
    def candidates(self) -> int:
        """Angles tried for every patch."""
        return ceil(2 * self.span_deg / CELL_DEG)

    @property
    def cell_deg(self) -> float:
        """Distance between the angles tried."""
        return 2 * self.span_deg / self.candidates


@dataclass(frozen=True)
class Translation:
    """A shift in x and y, each normal with standard deviation `prior_px`."""

    prior_px: float = 1.5

    def __post_init__(self) -> None:
        if not self.prior_px > 0:
            raise UserError(f"Translation: prior_px = {self.prior_px} is not possible; give more than 0.")


@dataclass(frozen=True)
class Scale:
    """A magnification whose logarithm is normal with standard deviation `prior`."""

    prior: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.prior <= 1:
            raise UserError(f"Scale: prior = {self.prior} is not possible; give a number from 0 to 1.")


@dataclass(frozen=True)
class Discrete:
    """One of `k` classes, unknown, equally likely beforehand; summed over exactly, not sampled."""

    k: int = 4

    def __post_init__(self) -> None:
        if not _whole(self.k, 2):
            raise UserError(f"Discrete({self.k}): give at least 2 classes, a whole number.")


@dataclass(frozen=True)
class Classes:
    """One of `k` classes, known for some patches (labels 0 to k - 1; -1 = unknown)."""

    k: int

    def __post_init__(self) -> None:
        if not _whole(self.k, 2):
            raise UserError(f"Classes({self.k}): give at least 2 classes, a whole number.")


@dataclass(frozen=True)
class Condition:
    """`n` numbers given with every patch, or one label of `n`: dose, time, voltage, species."""

    n: int = 1

    def __post_init__(self) -> None:
        if not _whole(self.n, 1):
            raise UserError(f"Condition({self.n}): give a whole number, at least 1.")


@dataclass(frozen=True)
class Values:
    """`n` numbers that are known for some patches (NaN = unknown) and predicted for the others.

    The decoder draws from them as from a code, so patches without a value teach as well (the regression variant of
    the semi-supervised model of Kingma et al. 2014).
    """

    n: int = 1
    weight: float = 20.0
    """Weight of the log-likelihood of the known values under the encoder."""

    def __post_init__(self) -> None:
        if not _whole(self.n, 1) or not self.weight > 0:
            raise UserError(f"{self} is not possible: give at least 1 number, and a weight of more than 0.")


Block = Continuous | Rotation | Translation | Scale | Discrete | Classes | Condition | Values


@dataclass(frozen=True)
class Blocks:
    """A latent space, one field per kind of block; None where there is none."""

    continuous: Continuous | None = None
    rotation: Rotation | None = None
    translation: Translation | None = None
    scale: Scale | None = None
    discrete: Discrete | Classes | None = None
    condition: Condition | None = None
    values: Values | None = None

    @property
    def posed(self) -> bool:
        """Whether anything moves the coordinates."""
        return any((self.rotation, self.translation, self.scale))

    @property
    def candidates(self) -> int:
        """Angles tried for every patch."""
        return self.rotation.candidates if self.rotation else 1

    @property
    def classes(self) -> int:
        """Number of classes; 1 without any."""
        return self.discrete.k if self.discrete else 1

    @property
    def numbers(self) -> int:
        """Size of code and values."""
        return (self.continuous.n if self.continuous else 0) + (self.values.n if self.values else 0)

    @property
    def code_size(self) -> int:
        """Numbers that the decoder is given: code, values, class (one-hot), condition."""
        return (
            self.numbers
            + (self.discrete.k if self.discrete else 0)
            + (self.condition.n if self.condition else 0)
        )


_FIELD = {
    Continuous: "continuous", Rotation: "rotation", Translation: "translation", Scale: "scale",
    Discrete: "discrete", Classes: "discrete", Condition: "condition",
    Values: "values",
}  # fmt: skip


def gather(blocks: Sequence[Block]) -> Blocks:
    """Sort a list of blocks into its fields.

    Raises
    ------
    UserError
        The list is empty, holds something else than blocks, or two blocks of one kind.
    """
    found: dict[str, Block] = {}
    for block in blocks:
        if type(block) not in _FIELD:
            raise UserError(
                f"{block!r} is not a block of a latent space; use those of micrographia.latent.blocks."
            )
        name = _FIELD[type(block)]
        if name in found:
            raise UserError(f"A latent space holds one {name} block at most, got {found[name]} and {block}.")
        found[name] = block
    if not found or set(found) == {"condition"}:
        raise UserError(
            "A latent space needs at least one block that is inferred from the patch, as Continuous(2)."
        )
    if "values" in found and isinstance(found.get("discrete"), Classes):
        raise UserError("Known classes and known values cannot be taught at once; use Discrete with Values.")
    return Blocks(**found)  # type: ignore[arg-type]
