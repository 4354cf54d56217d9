"""What `--method` means: transforms of the float weights, then one way of rounding them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from halfbyte.errors import UnsupportedError
from halfbyte.quant.algorithms import ALGORITHMS, CALIBRATED
from halfbyte.quant.transforms import TRANSFORMS

ActOrder = Literal["none", "static", "group"]
ACT_ORDERS: tuple[ActOrder, ...] = ("none", "static", "group")
# Methods that aim at the output of the float model, so that both models must run.
FLOAT_STREAM = ("gptaq", "best")
OWN_TEXT = ("best",)
# Without data, but with a search that takes far longer than writing the weights.
SLOW = ("hqq", "exhaustive")


@dataclass(frozen=True)
class MethodOptions:
    """What bends the calibrated methods; the defaults are what measured best.

    damping: added to the hessian's diagonal, in units of its mean; raised tenfold until the matrix
    is positive definite. tail_damping: damp more where inputs have heavier tails than a normal
    distribution, by the square of E[x^2] / E[|x|]^2 over the normal one's. act_order: `none`
    (columns as they stand), `static` (columns by falling diagonal, groups by place, scales chosen
    up front), `group` (groups of sorted columns, for encodings with a group index). static_groups:
    the scales of all groups from the given weights, none from updated ones. group_search: look for
    better ranges of an affine group than the plain one; None: in `best`, and in models that are no
    decoders, in which a narrow text misleads the search. trials: round each group on several grids
    and keep the best, where ranges are not the plain ones. refine: rounds of refitting scales and
    descending on codes after GPTQ; 0, with `trials` and `tail_damping` off, is the paper's method.
    alpha: the weight of GPTAQ's correction. true_sequential: weights of a layer see what the
    layer's earlier ones became.
    """

    damping: float = 0.01
    tail_damping: bool = True
    act_order: ActOrder = "none"
    static_groups: bool = False
    group_search: bool | None = None
    trials: bool = True
    refine: int = 0
    alpha: float = 0.25
    true_sequential: bool = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UnsupportedError: one has no meaning.
        """
        if self.act_order not in ACT_ORDERS:
            raise UnsupportedError(f"act order {self.act_order!r}", "quantize", list(ACT_ORDERS))
        if not 0 <= self.damping <= 1:
            found = f"damping {self.damping!r}"
            raise UnsupportedError(found, "quantize", ["numbers from 0 to 1"])
        if self.refine < 0:
            raise UnsupportedError(f"refine {self.refine}", "quantize", ["refine from 0"])


@dataclass(frozen=True)
class Chain:
    """A method: names of transforms in order, and the algorithm that rounds."""

    transforms: tuple[str, ...]
    rounding: str

    @property
    def name(self) -> str:
        """Return the text that `parse_method` reads."""
        return "+".join([*self.transforms, self.rounding])

    @property
    def is_calibrated(self) -> bool:
        """Whether inputs of the layers must be known: for rounding or for a transform."""
        return self.rounding in CALIBRATED or any(name in NEED_DATA for name in self.transforms)

    @property
    def is_slow(self) -> bool:
        """Whether a run that was stopped is to find again what it had rounded."""
        return self.is_calibrated or bool(self.transforms) or self.rounding in SLOW

    @property
    def needs_hessian(self) -> bool:
        """Whether rounding asks for the whole matrix of products of inputs."""
        return self.rounding in CALIBRATED

    @property
    def needs_float_stream(self) -> bool:
        """Whether the float model must run beside the quantized one."""
        return self.rounding in FLOAT_STREAM

    @property
    def writes_text(self) -> bool:
        """Whether a language model is also to be calibrated on text that it writes itself."""
        return self.rounding in OWN_TEXT


# Transforms that look at the layers' inputs; rotation does not.
NEED_DATA = ("awq", "smoothquant")


def parse_method(text: str) -> Chain:
    """Return what a name of `--method` stands for: `gptq`, `awq`, `rotate+awq+gptq`, ...

    Where the last name is a transform, rounding is `rtn`.

    Raises:
        UnsupportedError: a name is unknown, stands twice, or something follows the rounding.
    """
    names = [name.strip() for name in text.lower().split("+")]
    rounding = [*ALGORITHMS, *CALIBRATED]
    for name in names:
        if not name and len(names) > 1:
            given = "+".join(filter(None, names))
            empty = f"method {text!r} with an empty place"
            raise UnsupportedError(empty, "quantize", [given] if given else [], _ADVICE)
        if name not in TRANSFORMS and name not in rounding:
            raise UnsupportedError(f"method {name!r}", "quantize", _near(name), _ADVICE)
    *transforms, last = names
    if last in TRANSFORMS:
        transforms, last = names, "rtn"
    for name in transforms:
        if name not in TRANSFORMS:
            after = names[names.index(name) + 1]
            found = f"method {text!r}, where {after!r} follows {name!r}, which rounds,"
            raise UnsupportedError(found, "quantize", _reordered(names))
    if len(set(transforms)) != len(transforms):
        twice = next(name for name in transforms if transforms.count(name) > 1)
        once = "+".join([*dict.fromkeys(transforms), last])
        raise UnsupportedError(f"method {text!r} with {twice!r} twice", "quantize", [once])
    return Chain(tuple(transforms), last)


def _reordered(names: Iterable[str]) -> list[str]:
    """Return the chains that the names may have meant, one for each that rounds."""
    listed = list(dict.fromkeys(names))
    transforms = [name for name in listed if name in TRANSFORMS]
    return ["+".join([*transforms, name]) for name in listed if name not in TRANSFORMS]


_ADVICE = (
    f"a method is one of {', '.join([*ALGORITHMS, *CALIBRATED])}, after any of "
    f"{', '.join(TRANSFORMS)}: awq+gptq"
)


def _near(name: str) -> list[str]:
    known = [*ALGORITHMS, *CALIBRATED, *TRANSFORMS]
    return difflib.get_close_matches(name, known, n=3, cutoff=0.5)
