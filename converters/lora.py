"""Low-rank adapters: what one holds, and merging it into a model.

A pair (A [rank, in], B [out, rank]) changes a weight W [out, in] to W + scale * B A. Merging
streams: rows of the sum are computed in float32 when they are read, the products summed in the
order of the rank, so that the result depends neither on threads nor on a matrix library.

Source: Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rsLoRA: alpha / sqrt(rank)), Liu et al. 2024
(DoRA: rows brought to a learned length), as PEFT computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.architectures import get_architecture
from halfbyte.converters.architectures.architecture import Architecture
from halfbyte.converters.weight_map import in_rotary_order
from halfbyte.errors import FormatError, HalfbyteError, QuantizationError, UnsupportedError
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.encodings.transcode import Verdict, judge, require_range, transcode
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.streamed_parts import computed_parts
from halfbyte.ir.tensor import Tensor

Floats = NDArray[np.float32]
BLOCK_VALUES = 1 << 16  # of float32, so that a block of the sum stays in the processor's cache


@dataclass(frozen=True)
class Pair:
    """What an adapter adds to one weight: scale * b @ a; dora: the length of each row afterwards.

    a: [rank, in], b: [out, rank], canonical orientation; dora: [out] or None.
    """

    name: str
    key: WeightKey
    a: Tensor
    b: Tensor
    scale: float
    dora: Tensor | None = None

    @property
    def rank(self) -> int:
        """Return the rank."""
        return self.a.rows


@dataclass(frozen=True)
class Adapter:
    """An adapter as read. interleaved: the rotary order of its query and key rows.

    alpha: the number in its settings. replaced: weights that it holds whole (PEFT's
    modules_to_save), by identity. files: text files beside it, by name.
    """

    source: str
    alpha: float
    pairs: tuple[Pair, ...]
    interleaved: bool = False
    replaced: dict[WeightKey, Tensor] = field(default_factory=dict)
    invocation_tokens: tuple[int, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Merged:
    """A model with adapters in it, and the verdict on every weight that they changed."""

    model: Model
    verdicts: dict[str, str]


def check_pair(pair: Pair, source: str) -> None:
    """Check that a pair fits together and is finite.

    Raises:
        FormatError: it does not.
    """
    for part, tensor in (("A", pair.a), ("B", pair.b)):
        if len(tensor.shape) != 2:
            found = list(tensor.shape)
            raise FormatError(source, f"{part} of {pair.name!r} has shape {found}, two dimensions "
                              "are required")  # fmt: skip
    if pair.a.rows != pair.b.columns or pair.a.rows < 1:
        rule = (
            f"ranks of {pair.name!r} differ: A has {pair.a.rows} rows, B {pair.b.columns} columns"
        )
        raise FormatError(source, f"{rule}; the file is damaged")
    for tensor in (pair.a, pair.b, *([] if pair.dora is None else [pair.dora])):
        require_finite(tensor, source)


def require_finite(tensor: Tensor, source: str) -> None:
    """Check that a tensor of an adapter holds finite floating numbers.

    Raises:
        FormatError: it does not.
    """
    if tensor.encoding.is_quantized:
        return
    if not (isinstance(tensor.encoding, Dense) and tensor.encoding.is_float):
        raise FormatError(source, f"{tensor.name!r} holds {tensor.encoding}, floats are required")
    for start, stop in tensor.row_ranges():
        if not np.isfinite(tensor.float32(start, stop)).all():
            rule = f"{tensor.name!r} holds NaN or infinity; the adapter is damaged"
            raise FormatError(source, rule)


def merge(model: Model, adapters: Sequence[tuple[Adapter, float]], keep_type: bool) -> Merged:
    """Return the model with adapters merged in, one after the other, each times its factor.

    keep_type: whether changed weights keep the model's own type, rounded once; else they are
    float32, for a plan that gives them another type.

    Raises:
        HalfbyteError: an adapter does not fit the model; quantized weights would keep their type.
        UnsupportedError: the model or an adapter has something that cannot be merged.
    """
    architecture = get_architecture(model.architecture)
    changed: dict[WeightKey, Tensor] = {}
    by_key = model.by_key()
    for adapter, factor in adapters:
        _check_mergeable(adapter, model)
        for key, tensor in adapter.replaced.items():
            changed[key] = _replacement(adapter, tensor, _base(by_key, key, adapter), factor)
        for pair in adapter.pairs:
            base = _base(by_key, pair.key, adapter)
            placed = _placed(pair, architecture, model, adapter)
            changed[pair.key] = _sum(changed.get(pair.key, base), placed, factor, adapter)
    weights, verdicts = dict(model.weights), {}
    for key, tensor in changed.items():
        name = by_key[key].name
        tensor = replace(tensor.identified(key), name=name)
        weights[name], verdicts[name] = _typed(tensor, by_key[key], keep_type)
    return Merged(model.with_weights(weights), verdicts)


def _check_mergeable(adapter: Adapter, model: Model) -> None:
    if adapter.invocation_tokens:
        advice = "it works from a point in the text on only: load it beside the model"
        raise UnsupportedError("merging an activated LoRA", adapter.source, (), advice)
    keys = [pair.key for pair in adapter.pairs] + list(adapter.replaced)
    ends = [key for key in keys if key.role in (Role.TOKEN_EMBEDDING, Role.OUTPUT_HEAD)]
    if ends and model.config.get("tie_word_embeddings"):
        what = f"an adapter of {ends[0].role} for a model whose head and embedding are one weight"
        advice = "the two would differ: save the base model with tie_word_embeddings false first"
        raise UnsupportedError(what, adapter.source, (), advice)


def _base(by_key: dict[WeightKey, Tensor], key: WeightKey, adapter: Adapter) -> Tensor:
    if key not in by_key:
        rule = f"changes {key}, which the model does not have; take the adapter's own base model"
        raise FormatError(adapter.source, rule)
    return by_key[key]


def _placed(pair: Pair, architecture: Architecture, model: Model, adapter: Adapter) -> Pair:
    """Return the pair with rows of B in the model's rotary order."""
    if "rope_interleaved" not in model.config:
        return pair
    config = {**model.config, "rope_interleaved": adapter.interleaved}
    wanted = bool(model.config["rope_interleaved"])
    b = in_rotary_order(pair.b.identified(pair.key), architecture, config, wanted)
    dora = pair.dora
    if dora is not None:
        dora = in_rotary_order(dora.identified(pair.key), architecture, config, wanted)
    return replace(pair, b=b, dora=dora)


def _replacement(adapter: Adapter, tensor: Tensor, base: Tensor, factor: float) -> Tensor:
    if tensor.shape != base.shape:
        rule = (
            f"{tensor.name!r} of shape {list(tensor.shape)} replaces {base.name!r} of shape "
            f"{list(base.shape)}; resize the base model first (new tokens need it)"
        )
        raise FormatError(adapter.source, rule)
    if factor != 1.0:
        what = f"a scale of {factor} for an adapter that replaces {base.name!r} whole"
        raise UnsupportedError(what, adapter.source, ["1"])
    return tensor


def _sum(base: Tensor, pair: Pair, factor: float, adapter: Adapter) -> Tensor:
    """Return base + factor * scale * b @ a as a lazy float32 tensor."""
    shape = (pair.b.rows, pair.a.columns)
    if shape != tuple(base.shape):
        rule = (
            f"{pair.name!r} is made for a weight of {list(shape)}, {base.name!r} has "
            f"{list(base.shape)}; take the adapter's own base model"
        )
        raise FormatError(adapter.source, rule)
    if pair.dora is not None and pair.dora.size != base.rows:
        rule = f"{pair.name!r} has {pair.dora.size} row lengths, {base.rows} are required"
        raise FormatError(adapter.source, rule)
    scale = np.float32(pair.scale * factor)

    def rows(start: int, stop: int) -> Array:
        values = base.float32(start, stop)
        total = values + product(pair.b.float32(start, stop), pair.a.float32(), scale)
        return total if pair.dora is None else _lengthened(total, _lengths(pair.dora, start, stop))

    return _computed(base, "float32", rows)


def _computed(base: Tensor, dtype: str, rows: Callable[[int, int], Array]) -> Tensor:
    encoding = Dense(dtype)
    specs = encoding.part_specs(base.rows, base.columns)
    parts = computed_parts(
        specs, base.columns, lambda a, b: {}, lambda a, b, known: (rows(a, b), {})
    )
    return replace(base, encoding=encoding, parts=parts)


def product(b: Floats, a: Floats, scale: np.float32) -> Floats:
    """Return scale * (b @ a), the products of each value summed in the order of the rank.

    b: [rows, rank], a: [rank, columns], both float32.
    """
    rows, columns = len(b), a.shape[1]
    out = np.zeros((rows, columns), np.float32)
    step = max(1, BLOCK_VALUES // max(1, columns))
    scratch = np.empty((min(step, rows), columns), np.float32)
    for start in range(0, rows, step):
        block = out[start : start + step]
        term = scratch[: len(block)]
        for k in range(b.shape[1]):
            np.multiply(b[start : start + step, k, None], a[k], out=term)
            block += term
        block *= scale
    return out


def _lengths(dora: Tensor, start: int, stop: int) -> Floats:
    return dora.float32().reshape(-1)[start:stop]


def _lengthened(rows: Floats, lengths: Floats) -> Floats:
    found = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1))
    factors = lengths / np.where(found > 0, found, 1).astype(np.float32)
    return np.asarray(rows * factors[:, None], np.float32)


def _typed(tensor: Tensor, base: Tensor, keep_type: bool) -> tuple[Tensor, str]:
    """Return the weight in the type it is to have, with the verdict on the way there."""
    if not keep_type:
        in_float = transcode(tensor, Dense("float32")) if tensor.encoding != Dense() else tensor
        return in_float, str(Verdict.EXACT_TO_ROUNDING)
    target = base.encoding
    if not isinstance(target, Dense):
        rule = f"{base.name!r} is {target}: merged values need a type of their own; give --type"
        raise HalfbyteError(f"--lora: {rule}")
    if judge(tensor.encoding, target) is Verdict.EXACT:
        verdict = Verdict.EXACT_TO_ROUNDING
    else:
        verdict = Verdict.ROUNDED
        try:
            require_range(tensor, target)
        except QuantizationError as error:
            rule = f"{error.rule}; give --type bfloat16 or float32"
            raise QuantizationError(base.name, rule) from error
    return transcode(tensor, target), str(verdict)
