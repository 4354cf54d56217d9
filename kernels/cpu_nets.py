"""Typed face of the C++ kernels for general graphs: convolution, products, pooling, recurrence.

As `cpu.py`: arrays in, arrays out, float32, C-contiguous; results depend neither on the batch nor
on the thread count. What is bound once (weights, shapes) is an object; calling it runs the kernel.

Raises (all functions): ValueError for a wrong dtype, shape or layout; BackendError without the
extension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.kernels.cpu import Float32, native

# Order of the C++ enum Unary.
UNARY = (
    *("none", "relu", "leaky_relu", "clip", "sigmoid", "hard_sigmoid", "hard_swish", "swish"),
    *("tanh", "gelu_erf", "gelu_tanh", "elu", "softplus", "mish", "exp", "log", "sqrt", "erf"),
    *("abs", "neg", "reciprocal", "floor", "ceil", "round"),
)
# Order of the C++ enum Binary.
BINARY = ("add", "sub", "mul", "div", "max", "min")
# Order of the C++ enum Form.
FORMS = ("gemm", "depthwise", "winograd", "transposed", "rows")
_UNARY_IDS: Mapping[str, int] = MappingProxyType({name: i for i, name in enumerate(UNARY)})
_BINARY_IDS: Mapping[str, int] = MappingProxyType({name: i for i, name in enumerate(BINARY)})
WINOGRAD_TILES = 12  # fewer pay for reading the weights only while those stay in the caches
WINOGRAD_CACHED = 1 << 14  # pairs of channels
WINOGRAD_CHANNELS = 16


@dataclass(frozen=True)
class Activation:
    """A function of UNARY with its parameters, applied to results before they are stored."""

    function: str = "none"
    alpha: float = 0.0
    beta: float = 0.0

    @property
    def native(self) -> tuple[int, float, float]:
        """Return what the extension takes."""
        return _UNARY_IDS[self.function], self.alpha, self.beta


NO_ACTIVATION = Activation()


@dataclass(frozen=True)
class Window:
    """How a kernel goes over an image; pads: top, left (what lies below follows from sizes)."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)


def conv_form(shape: Sequence[int], groups: int, window: Window, out_size: tuple[int, int]) -> str:
    """Return the form of FORMS that is fastest for weights [out, in of a group, kh, kw]."""
    if shape[1] == 1 and groups > 1:
        return "depthwise"
    plain = window.strides == (1, 1) and window.dilations == (1, 1) and groups == 1
    tiles = -(-out_size[0] // 4) * -(-out_size[1] // 4)
    cached = shape[0] * shape[1] <= WINOGRAD_CACHED and tiles >= 4
    wide = min(shape[0], shape[1]) >= WINOGRAD_CHANNELS and (cached or tiles >= WINOGRAD_TILES)
    if plain and window.kernel == (3, 3) and wide:
        return "winograd"
    # Lanes hold 16 pixels (8 at the end, at a lower rate), or 6 rows of one pixel each.
    pixels = out_size[0] * out_size[1]
    rest = pixels % 16
    lanes = pixels - rest + (0 if rest == 0 else 10 if rest <= 8 else 16)
    return "rows" if 1.15 * pixels < lanes else "gemm"


class ConvWeight:
    """Convolution weights packed for one form; shared by every Convolution over them.

    weight: [out, in of a group, kh, kw]; transposed: [in, out of a group, kh, kw].
    """

    __slots__ = ("form", "groups", "native", "shape")

    def __init__(self, weight: Float32, groups: int = 1, form: str = "gemm") -> None:
        """Pack a copy."""
        self.form = form
        self.groups = groups
        self.shape = tuple(weight.shape)
        self.native = native().ConvWeight(FORMS.index(form), weight, groups)


class Convolution:
    """Convolution (or its transpose) of images of one size.

    x: [batch, in, h, w]; result [batch, out, *out_size]: activation(conv + bias + residual).
    """

    __slots__ = ("_native", "out_shape")

    def __init__(
        self,
        weight: ConvWeight,
        x_shape: Sequence[int],
        out_size: tuple[int, int],
        window: Window,
        bias: Float32 | None = None,
        activation: Activation = NO_ACTIVATION,
    ) -> None:
        """Bind weights and sizes."""
        batch, channels, height, width = x_shape
        transposed = weight.form == "transposed"
        out = weight.shape[1] * weight.groups if transposed else weight.shape[0]
        self.out_shape = (batch, out, *out_size)
        geometry = [batch, channels, height, width, out, *out_size, weight.groups]
        geometry += [*window.strides, *window.dilations, *window.pads]
        self._native = native().Convolution(weight.native, bias, geometry, *activation.native)

    def __call__(
        self, x: Float32, residual: Float32 | None = None, out: Float32 | None = None
    ) -> Float32:
        """Return the result, written to `out` if given."""
        out = np.empty(self.out_shape, np.float32) if out is None else out
        self._native.run(x, residual, out)
        return out


class PackedMatrix:
    """The constant right-hand matrix of products: [k, n], or [n, k] with `transposed`."""

    __slots__ = ("k", "n", "native")

    def __init__(self, matrix: Float32, transposed: bool = False) -> None:
        """Pack a copy."""
        self.k, self.n = matrix.shape[::-1] if transposed else matrix.shape
        self.native = native().PackedMatrix(matrix, transposed)


@dataclass(frozen=True)
class Batch:
    """Where the matrices of a batch of products start, in elements."""

    a_offsets: Sequence[int] = field(default=(0,))
    b_offsets: Sequence[int] = field(default=(0,))


class Product:
    """activation(a b + bias + residual) for matrices a [m, k], b [k, n] ([n, k] if transposed).

    packed: b where it is constant. bias: [n]. Results of a batch lie one after the other.
    """

    __slots__ = ("_native",)

    def __init__(
        self,
        m: int,
        n: int,
        k: int,
        *,
        packed: PackedMatrix | None = None,
        transposed: bool = False,
        batch: Batch | None = None,
        bias: Float32 | None = None,
        activation: Activation = NO_ACTIVATION,
    ) -> None:
        """Bind sizes."""
        batch = batch or Batch()
        held = None if packed is None else packed.native
        offsets = list(batch.a_offsets), list(batch.b_offsets)
        self._native = native().Product(
            held, bias, m, n, k, transposed, *offsets, *activation.native
        )

    def __call__(
        self, a: Float32, b: Float32 | None, out: Float32, residual: Float32 | None = None
    ) -> Float32:
        """Write the results to `out` and return it."""
        self._native.run(a, b, residual, out)
        return out


def matmul(a: Float32, b: Float32, out: Float32 | None = None) -> Float32:
    """Return the matrix products of the last two axes; leading axes broadcast."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    out = np.empty((*lead, m, n), np.float32) if out is None else out
    batch = Batch(batch_offsets(a.shape, lead), batch_offsets(b.shape, lead))
    return Product(m, n, k, batch=batch)(a, b, out)


def batch_offsets(shape: Sequence[int], lead: Sequence[int]) -> list[int]:
    """Return where the matrices of an array [..., r, c] start when its lead is broadcast."""
    own = tuple(shape[:-2])
    size = int(np.prod(shape[-2:]))
    starts = np.arange(int(np.prod(own)), dtype=np.int64).reshape(own) * size
    offsets: list[int] = np.broadcast_to(starts, tuple(lead)).ravel().tolist()
    return offsets


@dataclass(frozen=True)
class Counts:
    """How many cells count in each output row and column of an average."""

    rows: NDArray[np.float32]
    columns: NDArray[np.float32]


def pool(
    x: Float32,
    window: Window,
    out_size: tuple[int, int],
    counts: Counts | None = None,
    out: Float32 | None = None,
) -> Float32:
    """Return maxima (with counts: averages) over windows of the last two axes; pads never win."""
    lead, (height, width) = x.shape[:-2], x.shape[-2:]
    out = np.empty((*lead, *out_size), np.float32) if out is None else out
    geometry = [int(np.prod(lead)), height, width, *out_size, *window.kernel]
    geometry += [*window.strides, *window.dilations, *window.pads]
    rows, columns = (None, None) if counts is None else (counts.rows, counts.columns)
    native().pool(x, geometry, rows, columns, out)
    return out


def unary(x: Float32, activation: Activation, out: Float32 | None = None) -> Float32:
    """Return the function of every element."""
    out = np.empty(x.shape, np.float32) if out is None else out
    native().unary(*activation.native, x, out)
    return out


def binary(function: str, a: Float32, b: Float32, out: Float32 | None = None) -> Float32:
    """Return a function of BINARY of two arrays that broadcast."""
    if out is None:
        out = np.empty(np.broadcast_shapes(a.shape, b.shape), np.float32)
    native().binary(_BINARY_IDS[function], a, b, out)
    return out


def reduce_axis(
    x: Float32, n: int, inner: int, kind: str = "sum", out: Float32 | None = None
) -> Float32:
    """Return the sum, mean or max over n of x as [outer, n, inner]."""
    out = np.empty(x.size // n, np.float32) if out is None else out
    native().reduce(kind == "max", x, n, inner, float(n) if kind == "mean" else 1.0, out)
    return out


def softmax_axis(x: Float32, n: int, inner: int, out: Float32 | None = None) -> Float32:
    """Return the softmax over n of x as [outer, n, inner]."""
    out = np.empty(x.shape, np.float32) if out is None else out
    native().softmax_axis(x, n, inner, out)
    return out


def normalize(
    x: Float32,
    n: int,
    scale: Float32,
    shift: Float32,
    epsilon: float,
    activation: Activation = NO_ACTIVATION,
    out: Float32 | None = None,
) -> Float32:
    """Return rows of n values with mean 0 and variance 1, times scale, plus shift.

    scale, shift: one value per row, repeated every len(scale) rows.
    """
    out = np.empty(x.shape, np.float32) if out is None else out
    native().normalize(x, n, scale, shift, epsilon, *activation.native, out)
    return out


def resample(
    x: Float32,
    n: int,
    inner: int,
    indices: NDArray[np.int64],
    weights: Float32,
    out: Float32,
) -> Float32:
    """Return weighted picks along n of x as [outer, n, inner]; indices, weights: [m, taps]."""
    native().resample(x, n, inner, indices, weights, out)
    return out


def transpose(x: Float32, order: Sequence[int], out: Float32 | None = None) -> Float32:
    """Return x with its axes in another order."""
    out = np.empty([x.shape[axis] for axis in order], np.float32) if out is None else out
    native().transpose(x, list(order), out)
    return out


def top_k(
    x: Float32,
    n: int,
    inner: int,
    k: int,
    largest: bool,
    values: Float32,
    places: NDArray[np.int64],
) -> None:
    """Write the k largest or smallest over n of x as [outer, n, inner], in order, and places."""
    native().top_k(x, n, inner, k, largest, values, places)


def gather_elements(
    x: NDArray[Any], n: int, inner: int, indices: NDArray[np.int64], out: NDArray[Any]
) -> None:
    """Write x[o, indices[o, i, c], c] for x as [outer, n, inner], elements of 4 or 8 bytes.

    Raises:
        IndexError: an index is outside the axis.
    """
    native().gather_elements(x, n, inner, indices, out)


@dataclass(frozen=True)
class RecurrentWeights:
    """Recurrent weights of one direction: LSTM one matrix [4h, h]; GRU [2h, h] and [h, h]."""

    first: PackedMatrix
    second: PackedMatrix | None = None
    peepholes: Float32 | None = None
    h_bias: Float32 | None = None


def recurrent(
    weights: RecurrentWeights,
    gates: Float32,
    h: Float32,
    c: Float32 | None = None,
    y: Float32 | None = None,
    *,
    y_offset: int = 0,
    y_step: int = 0,
    reverse: bool = False,
    linear_before_reset: bool = False,
) -> None:
    """Run one direction of an LSTM (c given) or GRU over gates [steps, batch, gates * hidden].

    gates: x W^T plus biases, in ONNX's order, overwritten. h, c: [batch, hidden], first state in,
    last out. Step s goes to y (flat) from y_offset + s * y_step on.
    """
    second = None if weights.second is None else weights.second.native
    native().recurrent(
        c is None,
        gates,
        weights.first.native,
        second,
        weights.peepholes,
        weights.h_bias,
        h,
        c,
        y,
        y_offset,
        y_step,
        reverse,
        linear_before_reset,
    )
