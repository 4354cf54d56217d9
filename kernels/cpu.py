"""Typed face of the C++ kernels: arrays in, arrays out, no knowledge of the IR.

Arrays are C-contiguous numpy arrays; float data is float32. Functions with `out` write there and
return it, else they allocate. Each output element is summed in one fixed order, so a row's result
depends neither on the other rows of the batch nor on the thread count. The GIL is released inside.
Without the extension `available()` is False and every other function raises BackendError.

Raises (all functions): ValueError for a wrong dtype, shape or layout; BackendError as above.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import BackendError
from halfbyte.kernels.codebooks import GRID_KINDS, codebook
from halfbyte.kernels.cpu_claims import CLAIMS as CLAIMS
from halfbyte.kernels.cpu_claims import KINDS as KINDS
from halfbyte.kernels.layouts import LAYOUTS

Array = NDArray[Any]
Float32 = NDArray[np.float32]
Compute = Literal["exact", "int8"]

_KIND_IDS = {name: index for index, name in enumerate(KINDS)}
_NUMBER_IDS = {"float32": 1, "float16": 2, "bfloat16": 3, "uint8": 4}


@lru_cache(maxsize=1)
def _native() -> Any:
    try:
        from halfbyte.kernels import _cpu
    except ImportError as error:
        raise BackendError(
            f"the compiled CPU kernels are missing ({error})",
            "install a C++17 compiler and reinstall halfbyte",
        ) from error
    module: ModuleType = _cpu
    return module


def native() -> Any:
    """Return the extension.

    Raises:
        BackendError: it is missing.
    """
    return _native()


def available() -> bool:
    """Return whether the compiled kernels can be imported."""
    try:
        _native()
    except BackendError:
        return False
    return True


def isa() -> str:
    """Return the instruction set in use: scalar, avx2, avx512 or neon.

    Raises:
        ValueError: HALFBYTE_ISA names a level that this machine lacks.
    """
    return str(_native().isa())


def set_threads(count: int) -> None:
    """Set how many threads the kernels use, the caller's own included; at least 1."""
    _native().set_threads(count)


def threads() -> int:
    """Return how many threads the kernels use; by default one per processor of this process."""
    return int(_native().threads())


def fma_peak(rounds: int = 1 << 20) -> float:
    """Return the measured float32 operations per second of one thread, as a roofline."""
    start = time.perf_counter()
    operations = float(_native().fma_loop(rounds))
    return operations / (time.perf_counter() - start)


def kind_id(kind: str) -> int:
    """Return the number of a kind in the extension; a codebook goes there before its first use."""
    try:
        found = _KIND_IDS[kind]
    except KeyError:
        raise ValueError(f"kind {kind!r} is unknown, required one of {', '.join(KINDS)}") from None
    if kind in GRID_KINDS:
        _hand_over_codebook(kind)
    return found


@cache
def _hand_over_codebook(kind: str) -> None:
    points = codebook(kind)
    _native().set_codebook(_KIND_IDS[kind], points.digits, points.levels)


def _bytes(array: Array) -> Array:
    if not array.flags.c_contiguous:
        raise ValueError("weight data is not C-contiguous; copy it with numpy.ascontiguousarray")
    return array.reshape(-1).view(np.uint8)


def _number_id(name: str, array: Array | None, accepted: tuple[str, ...]) -> int:
    if array is None:
        return 0
    if array.dtype.name not in accepted:
        raise ValueError(f"{name} is {array.dtype.name}, required {' or '.join(accepted)}")
    return _NUMBER_IDS[array.dtype.name]


class LinearWeight:
    """An encoded weight [rows, columns]; keeps references to the given arrays, copies nothing.

    kind: one of KINDS. data: the encoded rows, uint8 [rows, row_bytes] (or, for dense kinds, an
    array of that dtype). Affine also takes bits (1 to 8), group_size (0: the whole row), scales
    [rows, groups] float32, float16 or bfloat16, zero_points [rows, groups] uint8 or one of those
    floats (2^(bits-1) where absent), and g_idx [columns] int32: the group of each column.
    """

    __slots__ = ("columns", "kind", "native", "rows")

    def __init__(
        self,
        kind: str,
        data: Array,
        rows: int,
        columns: int,
        *,
        bits: int = 0,
        group_size: int = 0,
        scales: Array | None = None,
        zero_points: Array | None = None,
        g_idx: NDArray[np.int32] | None = None,
    ) -> None:
        """Check the parts against each other and take references to them."""
        number = kind_id(kind)
        if kind == "affine" and scales is None:
            raise ValueError("an affine weight needs scales [rows, groups]")
        floats = ("float32", "float16", "bfloat16")
        scale_type = _number_id("scales", scales, floats)
        zero_type = _number_id("zero_points", zero_points, (*floats, "uint8"))
        self.kind = kind
        self.rows = rows
        self.columns = columns
        self.native = _native().Weight(
            number,
            _bytes(data),
            rows,
            columns,
            bits,
            group_size or columns,
            None if scales is None else _bytes(scales),
            scale_type,
            None if zero_points is None else _bytes(zero_points),
            zero_type,
            g_idx,
        )

    def decode(
        self, start: int = 0, stop: int | None = None, out: Float32 | None = None
    ) -> Float32:
        """Return rows [start, stop) as float32 [stop - start, columns]."""
        stop = self.rows if stop is None else stop
        out = np.empty((max(0, stop - start), self.columns), np.float32) if out is None else out
        _native().decode(self.native, start, stop, out)
        return out


def decode(kind: str, data: Array, columns: int, **affine: Any) -> Float32:
    """Return the float32 values [rows, columns] of encoded rows, exactly as the encoding says.

    data: uint8 [rows, row_bytes]; affine: the affine arguments of LinearWeight.
    """
    return LinearWeight(kind, data, data.shape[0], columns, **affine).decode()


def encode(
    kind: str, rows: Float32, importance: Float32 | None = None, compat: bool = False
) -> NDArray[np.uint8]:
    """Encode rows [rows, columns] with ggml's own algorithm, byte for byte.

    importance: [columns] float32 weights of the search; kinds without a search ignore it, IQ2_XXS,
    IQ2_XS and IQ1_S need it. compat: ggml's bytes also where its own decoder reads other values
    from them (IQ3_S blocks with a group of zeros) or where they lose the values (NVFP4).
    Returns uint8 [rows, row_bytes]. NaN and infinities are not looked for.

    Raises:
        ValueError: CLAIMS["encode"] lacks the kind, or a shape or dtype does not fit it.
    """
    if kind not in CLAIMS["encode"]:
        known = ", ".join(sorted(CLAIMS["encode"]))
        raise ValueError(f"encode: kind {kind!r} has no encoder, required one of {known}")
    if rows.ndim != 2:
        raise ValueError(f"encode: rows has {rows.ndim} dimensions, required [rows, columns]")
    layout = LAYOUTS[kind]
    row_bytes = -(-rows.shape[1] // layout.values) * layout.bytes
    out = np.empty((rows.shape[0], row_bytes), np.uint8)
    whole = np.require(rows, requirements="A")  # mapped files are often not aligned
    _native().encode(kind_id(kind), whole, importance, out, compat)
    return out


@overload
def linear(
    x: Float32,
    weight: LinearWeight,
    bias: Float32 | None = ...,
    compute: Compute = ...,
    out: Float32 | None = ...,
) -> Float32: ...
@overload
def linear(
    x: Float32,
    weight: Sequence[LinearWeight],
    bias: Sequence[Float32 | None] | None = ...,
    compute: Compute = ...,
    out: Sequence[Float32] | None = ...,
) -> list[Float32]: ...
def linear(
    x: Float32,
    weight: LinearWeight | Sequence[LinearWeight],
    bias: Any = None,
    compute: Compute = "exact",
    out: Any = None,
) -> Float32 | list[Float32]:
    """Return x W^T + bias: x [..., columns], W [rows, columns], result [..., rows].

    A sequence of weights that share x gives a list of results (bias and out are then sequences
    too) in one dispatch. compute "exact" multiplies exactly decoded weights in float32; "int8"
    rounds x to int8 per row and 32 columns and multiplies integers where the kind allows it
    (CLAIMS["linear_int8"]; act-order and groups that 32 does not divide stay exact).

    Raises:
        ValueError: the numbers of weights, biases and outputs differ, or shapes do not fit.
    """
    native = _native()
    if isinstance(weight, LinearWeight):
        if out is None:
            out = np.empty((*x.shape[:-1], weight.rows), np.float32)
        native.linear(x, (weight.native,), (bias,), (out,), _is_int8(compute), False)
        return out  # type: ignore[no-any-return]
    if out is None:
        lead = x.shape[:-1]
        out = [np.empty((*lead, one.rows), np.float32) for one in weight]
    biases = (None,) * len(weight) if bias is None else tuple(bias)
    if not len(weight) == len(biases) == len(out):
        raise ValueError(
            f"linear: {len(weight)} weights, {len(biases)} biases and {len(out)} outputs; "
            "required the same number of each"
        )
    natives = tuple([one.native for one in weight])
    native.linear(x, natives, biases, tuple(out), _is_int8(compute), False)
    return list(out)


def linear_swiglu(
    x: Float32,
    gate: LinearWeight,
    up: LinearWeight,
    compute: Compute = "exact",
    gate_bias: Float32 | None = None,
    up_bias: Float32 | None = None,
    out: Float32 | None = None,
) -> Float32:
    """Return silu(x G^T) * (x U^T) in one dispatch; shapes as `linear`, equal to it bit for bit."""
    if out is None:
        out = np.empty((*x.shape[:-1], gate.rows), np.float32)
    weights = (gate.native, up.native)
    _native().linear(x, weights, (gate_bias, up_bias), (out, None), _is_int8(compute), True)
    return out


def _is_int8(compute: str) -> bool:
    if compute == "int8":
        return True
    if compute == "exact":
        return False
    raise ValueError(f"compute {compute!r} is unknown, required 'exact' or 'int8'")


def gather_rows(
    weight: LinearWeight, ids: NDArray[np.int64], out: Float32 | None = None
) -> Float32:
    """Return float32 [..., columns]: the decoded row of each id; ids: [...] int64."""
    out = np.empty((*ids.shape, weight.columns), np.float32) if out is None else out
    _native().gather_rows(weight.native, ids, out)
    return out


def rms_norm(
    x: Float32, weight: Float32, epsilon: float = 1e-5, out: Float32 | None = None
) -> Float32:
    """Return x / sqrt(mean(x^2) + epsilon) * weight over the last axis."""
    out = np.empty(x.shape, np.float32) if out is None else out
    _native().rms_norm(x, weight, epsilon, out)
    return out


def add_rms_norm(
    x: Float32,
    residual: Float32,
    weight: Float32,
    epsilon: float = 1e-5,
    sum_out: Float32 | None = None,
    out: Float32 | None = None,
) -> tuple[Float32, Float32]:
    """Return (rms_norm(x + residual), x + residual); sum_out may be x or residual itself."""
    sum_out = np.empty(x.shape, np.float32) if sum_out is None else sum_out
    out = np.empty(x.shape, np.float32) if out is None else out
    _native().add_rms_norm(x, residual, weight, epsilon, sum_out, out)
    return out, sum_out


def layer_norm(
    x: Float32,
    weight: Float32,
    bias: Float32 | None = None,
    epsilon: float = 1e-5,
    out: Float32 | None = None,
) -> Float32:
    """Return (x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis."""
    out = np.empty(x.shape, np.float32) if out is None else out
    _native().layer_norm(x, weight, bias, epsilon, out)
    return out


def rope(
    x: Float32,
    cos: Float32,
    sin: Float32,
    *,
    num_heads: int = 0,
    interleaved: bool = False,
    out: Float32 | None = None,
) -> Float32:
    """Rotate the first 2 * half values of each head; the rest of a head is copied.

    x: [batch, sequence, heads, head_dim], or [batch, sequence, heads * head_dim] with num_heads;
    cos, sin: [batch or 1, sequence, half]. Pairs are (i, i + half), or (2i, 2i + 1) if
    interleaved. out may be x.
    """
    heads = num_heads or x.shape[-2]
    width = x.shape[-1] if num_heads and x.ndim < 4 else heads * x.shape[-1]
    out = np.empty(x.shape, np.float32) if out is None else out
    _native().rope(x, cos, sin, heads, width // heads, interleaved, out)
    return out


def attention(
    q: Float32,
    key_cache: Float32,
    value_cache: Float32,
    length: int,
    *,
    scale: float | None = None,
    causal: bool = True,
    offset: int | None = None,
    window: int = 0,
    softcap: float = 0.0,
    mask: Array | None = None,
    out: Float32 | None = None,
) -> Float32:
    """Attend over the first `length` positions of the caches; result shaped like q.

    q: [batch, queries, heads, head_dim] or [batch, queries, heads * head_dim]; caches:
    [batch, kv_heads, capacity, head_dim]; scale: 1 / sqrt(head_dim) where None. Query i stands at
    position offset + i (length - queries + i where None) and sees itself and earlier positions if
    causal, and only the last `window` of these if window > 0. softcap > 0 bounds the scores to
    softcap * tanh(score / softcap). mask: [batch, length] bool or uint8, 0 hides a position. A
    query that sees nothing gives zeros.
    """
    out = np.empty(q.shape, np.float32) if out is None else out
    scale = float(1.0 / np.sqrt(key_cache.shape[-1])) if scale is None else scale
    offset = length - q.shape[1] if offset is None else offset
    native = _native()
    native.attention(
        q, key_cache, value_cache, length, scale, causal, offset, window, softcap, mask, out
    )
    return out


def append_kv(
    key_cache: Float32, value_cache: Float32, k: Float32, v: Float32, position: int
) -> None:
    """Write k, v [batch, tokens, kv_heads * head_dim] into the caches from `position` on."""
    _native().append_kv(key_cache, value_cache, k, v, position)


def silu(x: Float32, out: Float32 | None = None) -> Float32:
    """Return x / (1 + exp(-x))."""
    out = np.empty(x.shape, np.float32) if out is None else out
    _native().silu(x, out)
    return out


def swiglu(gate: Float32, up: Float32, out: Float32 | None = None) -> Float32:
    """Return silu(gate) * up."""
    out = np.empty(gate.shape, np.float32) if out is None else out
    _native().swiglu(gate, up, out)
    return out


def gelu(
    x: Float32, approximate: Literal["none", "tanh"] = "none", out: Float32 | None = None
) -> Float32:
    """Return the Gaussian error linear unit: by erf, or by its tanh approximation.

    Raises:
        ValueError: `approximate` is neither.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate {approximate!r}, required 'none' or 'tanh'")
    out = np.empty(x.shape, np.float32) if out is None else out
    _native().gelu(x, out, approximate == "tanh")
    return out


def add(a: Float32, b: Float32, out: Float32 | None = None) -> Float32:
    """Return a + b; b has the shape of a, or is one vector that meets every row of a."""
    out = np.empty(a.shape, np.float32) if out is None else out
    _native().add(a, b, out)
    return out


def mul(a: Float32, b: Float32, out: Float32 | None = None) -> Float32:
    """Return a * b; b has the shape of a, or is one vector that meets every row of a."""
    out = np.empty(a.shape, np.float32) if out is None else out
    _native().mul(a, b, out)
    return out


def softmax(x: Float32, out: Float32 | None = None) -> Float32:
    """Return the softmax over the last axis."""
    out = np.empty(x.shape, np.float32) if out is None else out
    _native().softmax(x, out)
    return out
