"""Types of the compiled extension; `cpu.py` is its public face."""

from typing import Any

from numpy.typing import NDArray

class Weight:
    def __init__(
        self,
        kind: int,
        data: NDArray[Any],
        rows: int,
        columns: int,
        bits: int,
        group_size: int,
        scales: NDArray[Any] | None,
        scale_type: int,
        zero_points: NDArray[Any] | None,
        zero_type: int,
        g_idx: NDArray[Any] | None,
    ) -> None: ...

def isa() -> str: ...
def set_threads(count: int, /) -> None: ...
def threads() -> int: ...
def fma_loop(rounds: int, /) -> float: ...
def linear(
    x: NDArray[Any],
    weights: tuple[Weight, ...],
    biases: tuple[NDArray[Any] | None, ...],
    outs: tuple[NDArray[Any] | None, ...],
    int8: bool,
    swiglu: bool,
    /,
) -> None: ...
def decode(weight: Weight, start: int, stop: int, out: NDArray[Any], /) -> None: ...
def gather_rows(weight: Weight, ids: NDArray[Any], out: NDArray[Any], /) -> None: ...
def set_codebook(kind: int, digits: NDArray[Any], levels: NDArray[Any], /) -> None: ...
def encode(
    kind: int,
    rows: NDArray[Any],
    importance: NDArray[Any] | None,
    out: NDArray[Any],
    compat: bool = ...,
) -> None: ...
def least_error(
    x: NDArray[Any],
    w: NDArray[Any],
    scale: NDArray[Any] | None,
    minimum: NDArray[Any] | None,
    first: NDArray[Any] | None,
    candidates: int,
    both_signs: bool,
    levels: NDArray[Any],
    plain_levels: bool,
    chosen: NDArray[Any],
    error: NDArray[Any],
) -> None: ...
def reencode(
    weight: Weight,
    kind: int,
    importance: NDArray[Any] | None,
    out: NDArray[Any],
    compat: bool = ...,
) -> bool: ...
def rms_norm(
    x: NDArray[Any], weight: NDArray[Any], epsilon: float, out: NDArray[Any], /
) -> None: ...
def add_rms_norm(
    x: NDArray[Any],
    residual: NDArray[Any],
    weight: NDArray[Any],
    epsilon: float,
    total: NDArray[Any],
    out: NDArray[Any],
    /,
) -> None: ...
def layer_norm(
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    epsilon: float,
    out: NDArray[Any],
) -> None: ...
def softmax(x: NDArray[Any], out: NDArray[Any], /) -> None: ...
def rope(
    x: NDArray[Any],
    cos: NDArray[Any],
    sin: NDArray[Any],
    heads: int,
    head_dim: int,
    interleaved: bool,
    out: NDArray[Any],
    /,
) -> None: ...
def attention(
    q: NDArray[Any],
    key_cache: NDArray[Any],
    value_cache: NDArray[Any],
    length: int,
    scale: float,
    causal: bool,
    offset: int,
    window: int,
    softcap: float,
    mask: NDArray[Any] | None,
    out: NDArray[Any],
) -> None: ...
def append_kv(
    key_cache: NDArray[Any],
    value_cache: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    position: int,
    /,
) -> None: ...
def silu(x: NDArray[Any], out: NDArray[Any], /) -> None: ...
def gelu(x: NDArray[Any], out: NDArray[Any], tanh: bool, /) -> None: ...
def swiglu(gate: NDArray[Any], up: NDArray[Any], out: NDArray[Any], /) -> None: ...
def add(a: NDArray[Any], b: NDArray[Any], out: NDArray[Any], /) -> None: ...
def mul(a: NDArray[Any], b: NDArray[Any], out: NDArray[Any], /) -> None: ...
def integer_panel() -> int: ...
def integer_shift() -> int: ...
def integers_saturate() -> bool: ...
def pack_bytes(b: NDArray[Any], n: int, k: int, b_rows: bool, out: NDArray[Any], /) -> None: ...
def byte_product(
    a: NDArray[Any],
    b: NDArray[Any],
    n: int,
    level: tuple[Any, ...],
    offset: NDArray[Any],
    weight_zero: NDArray[Any] | None,
    scale: NDArray[Any],
    shift: NDArray[Any] | None,
    low: float,
    high: float,
    zero: int,
    is_signed: bool,
    kind: int,
    out: NDArray[Any],
) -> None: ...
def byte_conv(
    x: NDArray[Any],
    x_signed: bool,
    x_zero: int,
    filters: list[Any],
    offset: NDArray[Any],
    weight_zero: NDArray[Any] | None,
    scale: NDArray[Any],
    shift: NDArray[Any] | None,
    low: float,
    high: float,
    zero: int,
    is_signed: bool,
    kind: int,
    sizes: list[int],
    out: NDArray[Any],
) -> None: ...
def look_up_bytes(
    table: NDArray[Any], x: NDArray[Any], floats: bool, out: NDArray[Any], /
) -> None: ...
def byte_lstm(
    gates: NDArray[Any],
    weights: tuple[Any, ...],
    h: NDArray[Any],
    c: NDArray[Any],
    reverse: bool,
    y: NDArray[Any],
    /,
) -> None: ...
def quantize_bytes(
    x: NDArray[Any], scale: float, zero: int, is_signed: bool, out: NDArray[Any], /
) -> None: ...
def dequantize_bytes(
    x: NDArray[Any], scale: float, zero: int, is_signed: bool, out: NDArray[Any], /
) -> None: ...
def value_range(x: NDArray[Any], /) -> tuple[float, float]: ...
def add_bytes(
    a: NDArray[Any],
    b: NDArray[Any],
    a_signed: bool,
    b_signed: bool,
    scales: tuple[float, float, float],
    zeros: tuple[int, int, int],
    low: float,
    high: float,
    is_signed: bool,
    out: NDArray[Any],
    /,
) -> None: ...

class ConvWeight:
    def __init__(self, form: int, weight: NDArray[Any], groups: int, /) -> None: ...

class Convolution:
    def __init__(
        self,
        weight: ConvWeight,
        bias: NDArray[Any] | None,
        geometry: list[int],
        function: int,
        alpha: float,
        beta: float,
    ) -> None: ...
    def run(self, x: NDArray[Any], residual: NDArray[Any] | None, out: NDArray[Any]) -> None: ...

class PackedMatrix:
    def __init__(self, matrix: NDArray[Any], b_rows: bool, /) -> None: ...

class Product:
    def __init__(
        self,
        packed: PackedMatrix | None,
        bias: NDArray[Any] | None,
        m: int,
        n: int,
        k: int,
        b_rows: bool,
        a_offsets: list[int],
        b_offsets: list[int],
        function: int,
        alpha: float,
        beta: float,
    ) -> None: ...
    def run(
        self,
        a: NDArray[Any],
        b: NDArray[Any] | None,
        residual: NDArray[Any] | None,
        out: NDArray[Any],
    ) -> None: ...

def recurrent(
    gru: bool,
    gates: NDArray[Any],
    first: PackedMatrix,
    second: PackedMatrix | None,
    peepholes: NDArray[Any] | None,
    h_bias: NDArray[Any] | None,
    h: NDArray[Any],
    c: NDArray[Any] | None,
    y: NDArray[Any] | None,
    y_offset: int,
    y_step: int,
    reverse: bool,
    linear_before_reset: bool,
) -> None: ...
def pool(
    x: NDArray[Any],
    window: list[int],
    row_counts: NDArray[Any] | None,
    column_counts: NDArray[Any] | None,
    out: NDArray[Any],
) -> None: ...
def unary(
    function: int, alpha: float, beta: float, x: NDArray[Any], out: NDArray[Any], /
) -> None: ...
def binary(op: int, a: NDArray[Any], b: NDArray[Any], out: NDArray[Any], /) -> None: ...
def reduce(
    maximum: bool, x: NDArray[Any], n: int, inner: int, divisor: float, out: NDArray[Any], /
) -> None: ...
def softmax_axis(x: NDArray[Any], n: int, inner: int, out: NDArray[Any], /) -> None: ...
def normalize(
    x: NDArray[Any],
    n: int,
    scale: NDArray[Any],
    shift: NDArray[Any],
    epsilon: float,
    function: int,
    alpha: float,
    beta: float,
    out: NDArray[Any],
    /,
) -> None: ...
def resample(
    x: NDArray[Any],
    n: int,
    inner: int,
    indices: NDArray[Any],
    weights: NDArray[Any],
    out: NDArray[Any],
    /,
) -> None: ...
def transpose(x: NDArray[Any], order: list[int], out: NDArray[Any], /) -> None: ...
def top_k(
    x: NDArray[Any],
    n: int,
    inner: int,
    k: int,
    largest: bool,
    values: NDArray[Any],
    places: NDArray[Any],
    /,
) -> None: ...
def gather_elements(
    x: NDArray[Any], n: int, inner: int, indices: NDArray[Any], out: NDArray[Any], /
) -> None: ...

class CodeGrid:
    def __init__(
        self,
        scale: NDArray[Any],
        group_of_column: NDArray[Any],
        zero: NDArray[Any] | None,
        offset: NDArray[Any] | None,
        levels: NDArray[Any] | None,
        bounds: NDArray[Any] | None,
        low: int,
        high: int,
        fractional: bool,
    ) -> None: ...

def add_products(total: NDArray[Any], a: NDArray[Any], b: NDArray[Any] | None) -> None: ...
def factor(hessian: NDArray[Any], out: NDArray[Any]) -> bool: ...
def cross_factor(
    cross: NDArray[Any], factor: NDArray[Any], strict: bool, out: NDArray[Any]
) -> None: ...
def sweep(
    weights: NDArray[Any],
    factor: NDArray[Any],
    cross: NDArray[Any] | None,
    start: int,
    stop: int,
    grid: CodeGrid,
    codes: NDArray[Any],
    errors: NDArray[Any],
) -> None: ...
def feed_back(
    weights: NDArray[Any],
    factor: NDArray[Any],
    cross: NDArray[Any] | None,
    start: int,
    stop: int,
    chosen: NDArray[Any],
    errors: NDArray[Any],
) -> None: ...
def descend(
    hessian: NDArray[Any],
    values: NDArray[Any],
    gradient: NDArray[Any],
    codes: NDArray[Any],
    grid: CodeGrid,
    passes: int,
) -> int: ...
