"""The CPU: nodes bound to the compiled kernels, weights left encoded as stored.

A binder returns a step with arrays and arguments bound, or None where the kernel does not take the
node's types, shapes or encodings: then the numpy reference runs it. All binders see static slots.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.engine import available_threads
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.ops import op_spec
from halfbyte.ir.tensor import Tensor
from halfbyte.kernels import cpu as kernels
from halfbyte.runtime import (
    cpu_conv,
    cpu_experts,
    cpu_integers,
    cpu_recurrent,
    cpu_resize,
    cpu_select,
    cpu_tensor,
)
from halfbyte.runtime.backend import BoundNode, Slot, Step
from halfbyte.runtime.cpu_forms import kernel_form
from halfbyte.runtime.cpu_slots import Packed, arrays, floats
from halfbyte.runtime.reference import aligned_empty

Binder = Callable[["CpuBackend", BoundNode], "Step | None"]
NUMPY_BINARY: dict[str, Any] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Max": np.maximum,
    "Min": np.minimum,
    "Greater": np.greater,
    "Less": np.less,
    "Equal": np.equal,
    "GreaterOrEqual": np.greater_equal,
    "LessOrEqual": np.less_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
}


DECODED = "decoded"  # an encoding that `kernel_form` changes


def kind_of(tensor: Tensor) -> str | None:
    """Return the kernels' name for a weight's encoding, DECODED or None where they have none."""
    encoding = tensor.encoding
    name = encoding.name
    if isinstance(encoding, Dense):
        name = encoding.dtype_name
    elif isinstance(encoding, Affine):
        name = "affine"
    if name in kernels.CLAIMS["linear"]:
        return name
    return DECODED if encoding.is_quantized and encoding.can_decode else None


class CpuBackend:
    """Compiled kernels where they take a node, numpy elsewhere."""

    name = "cpu"

    def __init__(self, compute: str = "exact", threads: int | None = None) -> None:
        """Take the compute mode and the number of threads; None takes all processors."""
        self.compute: Any = compute
        self.threads = threads or available_threads()
        self.compiled = kernels.available()
        self.packed = Packed()

    def empty(self, nbytes: int) -> NDArray[np.uint8]:
        """Return host memory."""
        return aligned_empty(nbytes)

    def upload(self, tensor: Tensor) -> Any:
        """Return the kernels' view of a weight [rows, columns]; what they read is not copied."""
        if kind_of(tensor) == DECODED:
            tensor = kernel_form(tensor)
        parts = {name: np.asarray(part, order="C") for name, part in tensor.read().items()}
        encoding, kind = tensor.encoding, kind_of(tensor)
        assert kind is not None, tensor.name
        if not isinstance(encoding, Affine):
            return kernels.LinearWeight(kind, parts["data"], tensor.rows, tensor.columns)
        return kernels.LinearWeight(
            kind,
            parts["codes"],
            tensor.rows,
            tensor.columns,
            bits=encoding.bits,
            group_size=encoding.group_size or tensor.columns,
            scales=parts["scales"],
            zero_points=parts.get("zero_points"),
            g_idx=parts.get("g_idx"),
        )

    def takes(self, tensor: Tensor) -> bool:
        """Whether the kernels multiply by weights of this encoding."""
        return kind_of(tensor) is not None

    def bind(self, bound: BoundNode) -> Step | None:
        """Return a step over the kernels, or None."""
        newest = bound.spec is op_spec(bound.spec.key)
        binder = BINDERS.get(bound.spec.key) if newest else None
        if not self.compiled or binder is None or not bound.static:
            return None
        return binder(self, bound)

    def weight_of(self, bound: BoundNode, index: int) -> Any:
        """Return the uploaded weight at an input, None where the kernels cannot take it."""
        return weight_of(bound, index)

    def begin(self) -> None:
        """Set the thread count, which all sessions of the process share."""
        if self.compiled and kernels.threads() != self.threads:
            kernels.set_threads(self.threads)


def weight_of(bound: BoundNode, index: int) -> Any:
    """Return the uploaded weight at an input, None where the kernels cannot take it."""
    slot = bound.inputs[index]
    if slot is None or slot.tensor is None or kind_of(slot.tensor) is None:
        return None
    return bound.weights.uploaded(slot.tensor)


def last_axis(bound: BoundNode) -> bool:
    """Whether attribute `axis` is the last axis of the first input."""
    slot = bound.inputs[0]
    rank = len(slot.shape or ()) if slot is not None else 0
    return rank > 0 and bound.attributes["axis"] in (-1, rank - 1)


def is_row(slot: Slot | None, width: int) -> bool:
    """Whether a slot is one vector of `width` float32 values."""
    return floats(slot) and slot is not None and slot.shape == (width,)


def bind_linears(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Linear and LinearGroup: all weights of one input in one call."""
    count = bound.attributes.get("count", 1)
    weights = [weight_of(bound, 1 + i) for i in range(count)]
    biases = [*bound.inputs[1 + count :], *[None] * count][:count]
    if not floats(bound.inputs[0], *bound.outputs) or any(w is None for w in weights):
        return None
    packed = cpu_conv.bind_packed_linears(backend, bound)
    if packed is not None:
        return packed
    if not all(bias is None or floats(bias) for bias in biases):
        return None
    x = arrays(bound, 1)[0]
    offsets = [None if bias is None else bias.array for bias in biases]
    outs = [slot.value() for slot in bound.outputs]
    if count == 1:
        return partial(kernels.linear, x, weights[0], offsets[0], backend.compute, outs[0])
    return partial(kernels.linear, x, weights, offsets, backend.compute, outs)


def bind_linear_swiglu(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """LinearSwiGLU."""
    gate, up = weight_of(bound, 1), weight_of(bound, 2)
    if not floats(bound.inputs[0], *bound.outputs, *bound.inputs[3:]) or gate is None or up is None:
        return None
    x, _, _, gate_bias, up_bias = arrays(bound, 5)
    out = bound.outputs[0].value()
    return partial(kernels.linear_swiglu, x, gate, up, backend.compute, gate_bias, up_bias, out)


def bind_gather(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Gather: rows of a stored table, or slices of an array."""
    table, ids = bound.inputs
    out = bound.outputs[0].value()
    if ids is None or ids.array is None or ids.dtype not in ("int64", "int32"):
        return None
    axis = bound.attributes["axis"]
    if table is not None and table.tensor is not None:
        weight = weight_of(bound, 0)
        if axis != 0 or weight is None or ids.dtype != "int64" or not floats(bound.outputs[0]):
            return None
        return partial(gather_rows, weight, ids.array, table.tensor.rows, out)
    if table is None or table.array is None or table.dtype != bound.outputs[0].dtype:
        return None
    return partial(np.take, table.array, ids.array, axis, out)


def gather_rows(weight: Any, ids: Any, rows: int, out: Any) -> None:
    """Decode rows of a stored table; negative numbers count from its end."""
    kernels.gather_rows(weight, ids if ids.min() >= 0 else np.where(ids < 0, ids + rows, ids), out)


def bind_rms_norm(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """RMSNormalization over the last axis."""
    out = bound.outputs[0]
    if not floats(bound.inputs[0], out) or not last_axis(bound):
        return None
    if not is_row(bound.inputs[1], (out.shape or (0,))[-1]):
        return None
    x, scale = arrays(bound, 2)
    return partial(kernels.rms_norm, x, scale, bound.attributes["epsilon"], out.value())


def bind_add_rms_norm(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """AddRMSNormalization over the last axis of equal shapes."""
    out, total = bound.outputs
    left, right, scale = bound.inputs
    if not floats(left, right, out, total) or left is None or right is None:
        return None
    if (
        left.shape != right.shape
        or not last_axis(bound)
        or not is_row(scale, out.value().shape[-1])
    ):
        return None
    a, b, weight = arrays(bound, 3)
    epsilon = bound.attributes["epsilon"]
    return partial(kernels.add_rms_norm, a, b, weight, epsilon, total.value(), out.value())


def bind_layer_norm(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """LayerNormalization over the last axis, one output."""
    if len(bound.outputs) != 1 or not floats(bound.inputs[0], bound.outputs[0]):
        return None
    out = bound.outputs[0].value()
    rows = [slot for slot in bound.inputs[1:] if slot is not None]
    if not last_axis(bound) or not all(is_row(slot, out.shape[-1]) for slot in rows):
        return None
    x, scale, bias = arrays(bound, 3)
    return partial(kernels.layer_norm, x, scale, bias, bound.attributes["epsilon"], out)


def bind_add_layer_norm(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """AddLayerNormalization over the last axis of equal shapes."""
    left, right = bound.inputs[:2]
    if not floats(left, right, *bound.outputs) or left is None or right is None:
        return None
    out, total = (slot.value() for slot in bound.outputs)
    rows = [slot for slot in bound.inputs[2:] if slot is not None]
    if left.shape != right.shape or not last_axis(bound):
        return None
    if not all(is_row(slot, out.shape[-1]) for slot in rows):
        return None
    a, b, scale, bias = arrays(bound, 4)
    epsilon = bound.attributes["epsilon"]

    def step() -> None:
        kernels.add(a, b, total)
        kernels.layer_norm(total, scale, bias, epsilon, out)

    return step


def bind_rotary(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """RotaryEmbedding of [batch, sequence, heads * d] by one row of angles per token."""
    if len([slot for slot in bound.inputs if slot is not None]) != 3:
        return None
    if not floats(*bound.inputs[:3], bound.outputs[0]):
        return None
    x, cos, sin = arrays(bound, 3)
    heads = bound.attributes["num_heads"]
    if x.ndim != 3 or cos.ndim != 3 or cos.shape != sin.shape or cos.shape[:2] != x.shape[:2]:
        return None
    dim = bound.attributes["rotary_embedding_dim"] or x.shape[-1] // heads
    if dim != 2 * cos.shape[-1]:
        return None
    return partial(
        kernels.rope,
        x,
        cos,
        sin,
        num_heads=heads,
        interleaved=bool(bound.attributes["interleaved"]),
        out=bound.outputs[0].value(),
    )


def bind_attention(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """CachedAttention over the session's states, or over its own keys and values."""
    if not floats(*bound.inputs[:3], bound.outputs[0]):
        return None
    q, k, v, mask = arrays(bound, 4)
    rules = bound.attributes
    groups = rules["num_kv_heads"]
    if k.shape[-1] != v.shape[-1]:
        return None
    settings = {
        "scale": rules["scale"] or None,
        "causal": bool(rules["causal"]),
        "window": rules["window"],
        "softcap": rules["softcap"],
        "out": bound.outputs[0].value(),
    }
    if rules["key_state"]:
        return _cached(bound, (q, k, v), settings) if mask is None else None
    if mask is not None and mask.shape != k.shape[:2]:
        return None
    return _plain((q, k, v), groups, mask, settings)


def _cached(
    bound: BoundNode, inputs: tuple[Any, Any, Any], settings: dict[str, Any]
) -> Step | None:
    cache = bound.cache
    if cache is None:
        return None
    q, k, v = inputs
    keys = cache.buffers[bound.attributes["key_state"]]
    values = cache.buffers[bound.attributes["value_state"]]
    if keys.array.dtype != np.float32 or values.array.dtype != np.float32:
        return None
    new = q.shape[1]
    append: Any = kernels.append_kv
    attend: Any = partial(kernels.attention, q, **settings)

    def step() -> None:
        held, position = keys.array, cache.position
        append(held, values.array, k, v, position)
        attend(held, values.array, position + new, offset=position)

    return step


def _plain(inputs: tuple[Any, Any, Any], groups: int, mask: Any, settings: dict[str, Any]) -> Step:
    q, k, v = inputs
    shape = (k.shape[0], groups, k.shape[1], k.shape[2] // groups)
    keys, values = np.empty(shape, np.float32), np.empty(shape, np.float32)
    shown = None if mask is None else np.empty(mask.shape, np.bool_)

    def step() -> None:
        if shown is not None:
            np.not_equal(mask, 0, out=shown)
        kernels.append_kv(keys, values, k, v, 0)
        kernels.attention(q, keys, values, shape[2], mask=shown, **settings)

    return step


def bind_swiglu(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """SwiGLU of equal shapes."""
    gate, up = bound.inputs
    if (
        not floats(gate, up, bound.outputs[0])
        or gate is None
        or up is None
        or gate.shape != up.shape
    ):
        return None
    return partial(kernels.swiglu, gate.value(), up.value(), bound.outputs[0].value())


def bind_binary(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Elementwise operators of two inputs of one dtype, by kernel or numpy in place."""
    if len(bound.inputs) != 2:
        return None
    (left, right), out = bound.inputs, bound.outputs[0]
    if left is None or right is None or left.array is None or right.array is None:
        return None
    if left.dtype != right.dtype or left.dtype in ("bfloat16", "float16"):
        return None
    # ai.onnx divides integers towards zero, numpy does not.
    if bound.node.op in ("Div", "Pow") and not floats(left, right):
        return None
    fast = cpu_tensor.BINDERS.get(bound.node.op)
    if fast is not None and floats(left, right, out):
        return fast(backend, bound)
    return partial(NUMPY_BINARY[bound.node.op], left.array, right.array, out=out.value())


def bind_cast(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Cast between plain numbers."""
    plain = ("float32", "float64", "int64", "int32", "bool")
    source, out = bound.inputs[0], bound.outputs[0]
    if source is None or source.array is None or {source.dtype, out.dtype} - set(plain):
        return None
    return partial(np.copyto, out.value(), source.array, "unsafe")


BINDERS: dict[str, Binder] = {
    **cpu_tensor.BINDERS,
    **cpu_conv.BINDERS,
    **cpu_experts.BINDERS,
    **cpu_integers.BINDERS,
    **cpu_recurrent.BINDERS,
    **cpu_resize.BINDERS,
    **cpu_select.BINDERS,
    "Cast": bind_cast,
    "Gather": bind_gather,
    "LayerNormalization": bind_layer_norm,
    "RMSNormalization": bind_rms_norm,
    "RotaryEmbedding": bind_rotary,
    "halfbyte.AddLayerNormalization": bind_add_layer_norm,
    "halfbyte.AddRMSNormalization": bind_add_rms_norm,
    "halfbyte.CachedAttention": bind_attention,
    "halfbyte.Linear": bind_linears,
    "halfbyte.LinearGroup": bind_linears,
    "halfbyte.LinearSwiGLU": bind_linear_swiglu,
    "halfbyte.SwiGLU": bind_swiglu,
    **dict.fromkeys(NUMPY_BINARY, bind_binary),
}
