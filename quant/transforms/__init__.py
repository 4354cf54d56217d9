"""The table of transforms: changes of float weights that leave the model's function as it is.

A `ModelTransform` rewrites a whole model before calibration. A `LayerTransform` looks at the linear
layers of one layer together. The driver calls `fold` once per layer, after it has gathered the
statistics of every input of the layer's linears with the layer's float weights, and before any of
these linears is rounded:

    folded = transform.fold(graph, inputs, encodings, options, solver)
    for name, tensor in folded.weights.items():     # norm weights, biases, all linears concerned
        graph.set_constant(name, tensor)
    statistics = statistics of x .divided(folded.divisors[x.name])    # or run the layer again

`divisors` say what became of each input x of a linear: the new x is x / divisor, channel by
channel, and the weights that read it are multiplied by it. Weights that will be quantized come back
in float32, others in the float type they will be stored in; both are computed from the old ones
while they are read.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedError

if TYPE_CHECKING:
    from halfbyte.ir.encodings.encoding import Encoding
    from halfbyte.ir.graph import Graph, Value
    from halfbyte.ir.model import Model
    from halfbyte.ir.tensor import Tensor
    from halfbyte.quant.calibration.statistics import WeightStatistics
    from halfbyte.quant.solver import Solver

TRANSFORMS: dict[str, str] = {
    "awq": "halfbyte.quant.transforms.awq:Awq",
    "smoothquant": "halfbyte.quant.transforms.smoothquant:SmoothQuant",
    "rotate": "halfbyte.quant.transforms.rotation:Rotation",
}


@dataclass(frozen=True)
class TransformOptions:
    """What bends a transform.

    alpha: SmoothQuant's share of the activations, 0 to 1. grid: AWQ's exponents from 0 to 1. clip:
    AWQ's search of ranges, right only where plain rounding follows. search_rows: of the rows that
    read one input, how many AWQ's losses are taken from (0: all). heads: whether `rotate` also
    turns each attention head's values. seed: of the signs of the rotation.
    """

    alpha: float = 0.5
    grid: int = 20
    clip: bool = True
    search_rows: int = 1024
    heads: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check alpha.

        Raises:
            UnsupportedError: it has no meaning.
        """
        if not 0 <= self.alpha <= 1:
            found = f"SmoothQuant's alpha {self.alpha!r}"
            raise UnsupportedError(found, "quantize", ["numbers from 0 to 1"])


@dataclass(frozen=True)
class LinearInput:
    """A value that linear layers read, and its statistics.

    statistics: one, or for experts that each meet rows of their own one per expert, None where no
    row came. A value that both plain layers and experts read stands twice.
    """

    x: Value
    statistics: WeightStatistics


@dataclass(frozen=True)
class Found:
    """What a transform chose for a layer: with it, `layer.replayed` makes the same weights again.

    factors: divisors [size], or [experts, size], of a group's source, by name of the value. limits:
    lowest and highest value of each group of columns, [rows, groups], by name of the constant.
    """

    factors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    limits: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Folded:
    """What a transform made of a layer.

    weights: replaced weights by name of their constant in the graph. divisors: float32 [K], or
    [experts, K], by name of the value that is now divided by it. left: inputs that could take no
    factors, and why.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    divisors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    found: Found = field(default_factory=Found)


class LayerTransform(Protocol):
    """A transform that sees one layer at a time, with statistics."""

    scope: Literal["layer"]

    def fold(
        self,
        graph: Graph,
        inputs: Sequence[LinearInput],
        encodings: Mapping[str, Encoding],
        options: TransformOptions,
        solver: Solver,
    ) -> Folded:
        """Return the replaced weights of the linears that read `inputs` and of what feeds them.

        encodings: by name of the constant, what each weight will be stored in, norms and biases
        included; those that are missing keep their encoding. The graph is not changed.
        """


class ModelTransform(Protocol):
    """A transform of a whole model, without statistics."""

    scope: Literal["model"]

    def rewrite(self, model: Model, options: TransformOptions) -> Rewritten:
        """Return the model over other weights.

        Raises:
            UnsupportedError: the model's function would not stay as it is.
        """


@dataclass(frozen=True)
class Rewritten:
    """A model over other weights, and what to tell of it."""

    model: Model
    notes: tuple[str, ...] = ()


def get_transform(name: str) -> LayerTransform | ModelTransform:
    """Return the transform called `name`.

    Raises:
        UnsupportedError: there is none.
    """
    if name not in TRANSFORMS:
        near = difflib.get_close_matches(name, TRANSFORMS) or list(TRANSFORMS)
        raise UnsupportedError(f"transform {name!r}", "quantize", near)
    module, member = TRANSFORMS[name].split(":")
    made: LayerTransform | ModelTransform = getattr(importlib.import_module(module), member)()
    return made
