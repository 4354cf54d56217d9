"""One function for each operator of an architecture's graph, by flavour.

Flavours: ai.onnx alone, with caches that grow or (`static`) of a fixed length; or (`contrib`) what
onnxruntime has besides. A node without an entry is taken
over as it is, its floating constants read in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from halfbyte.converters.onnx.language import attention, static_cache
from halfbyte.converters.onnx.language.builder import FLOAT32, MICROSOFT, OnnxBuilder, version_of
from halfbyte.converters.onnx.language.linear import linear, lookup
from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Dim, Graph, Node, Value
from halfbyte.ir.ops import op_key
from halfbyte.ir.tensor import Tensor

# Every position gets logits here.
SYMBOLS = {"batch": "batch_size", "sequence": "sequence_length", "outputs": "sequence_length"}
POSITIONS, OUTPUTS = "position_ids", "output_positions"


@dataclass
class Lowering:
    """One export under way: values of the source graph and what stands for them."""

    source: Graph
    builder: OnnxBuilder
    contrib: bool
    positions: int
    static: bool = False
    values: dict[Value, Value] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    cache: attention.CacheValues = field(default_factory=attention.CacheValues)

    def of(self, value: Value | None) -> Value | None:
        """Return what stands for a value; a constant becomes one when it is first read."""
        if value is None:
            return None
        if value not in self.values:
            if value.constant is None:
                return self._late_input(value)
            self.values[value] = self._constant(value.constant)
        return self.values[value]

    def required(self, value: Value | None) -> Value:
        """Return what stands for a value that must be there."""
        found = self.of(value)
        assert found is not None
        return found

    def _late_input(self, value: Value) -> Value:
        """Add an input of the source graph when the first node reads it."""
        assert value in self.source.inputs, value.name
        made = self.builder.graph.add_input(value.name, value.dtype or FLOAT32, dims(value) or ())
        self.values[value] = made
        return made

    def _constant(self, tensor: Tensor) -> Value:
        if not isinstance(tensor.encoding, Dense):
            raise UnsupportedError(
                f"{tensor.encoding} outside linear layers and lookups",
                f"tensor {tensor.name!r}",
                advice="give it a dense type with --tensor",
            )
        return self.builder.read(tensor)

    def run(self) -> None:
        """Lower every node in order."""
        for node in self.source.nodes:
            if id(node) not in self.done:
                TABLE.get(op_key(node.op, node.domain), copied)(self, node)

    def put(self, old: Value, new: Value) -> None:
        """Say what stands for the result of a node."""
        self.values[old] = new


def dims(value: Value) -> tuple[Dim, ...] | None:
    """Return the shape with the symbols that ONNX language models use."""
    if value.shape is None:
        return None
    return tuple(SYMBOLS.get(dim, dim) if isinstance(dim, str) else dim for dim in value.shape)


def copied(lowering: Lowering, node: Node) -> None:
    """Take a standard node over as it is."""
    if node.domain == HALFBYTE_DOMAIN:
        raise UnsupportedError(f"operator halfbyte.{node.op}", "--to onnx", sorted(TABLE))
    builder = lowering.builder
    inputs = [lowering.of(value) for value in node.inputs]
    outputs = [builder.value(v.name, v.dtype or FLOAT32, dims(v)) for v in node.outputs]
    builder.graph.insert(replace(node, inputs=inputs, outputs=outputs))
    for old, new in zip(node.outputs, outputs, strict=True):
        lowering.put(old, new)


def lower_linear(lowering: Lowering, node: Node) -> None:
    """Lower halfbyte.Linear."""
    x, weight = lowering.required(node.inputs[0]), node.inputs[1]
    assert weight is not None and weight.constant is not None
    name = node.outputs[0].name
    made = linear(lowering.builder, x, weight.constant, name, lowering.contrib)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = lowering.required(node.inputs[2])
        made = lowering.builder.op("Add", made, bias, name=f"{name}/Add", shape=made.shape)
    lowering.put(node.outputs[0], made)


def lower_gather(lowering: Lowering, node: Node) -> None:
    """Lower a lookup in a table; drop the choice of positions that get logits."""
    table, ids = node.inputs
    assert table is not None and ids is not None
    out = node.outputs[0]
    if ids.name == OUTPUTS and ids in lowering.source.inputs:
        lowering.put(out, lowering.required(table))
    elif (
        table.constant is not None
        and not node.attributes.get("axis")
        and len(table.shape or ()) == 2
    ):
        found = lookup(
            lowering.builder, table.constant, lowering.required(ids), out.name, lowering.contrib
        )
        lowering.put(out, found)
    else:
        copied(lowering, node)


def lower_swish(lowering: Lowering, node: Node) -> None:
    """Lower Swish to x * Sigmoid(alpha * x), which older opsets have."""
    builder, name = lowering.builder, node.outputs[0].name
    x = lowering.required(node.inputs[0])
    alpha = float(node.attributes.get("alpha") or 1.0)
    inner = x
    if alpha != 1.0:
        factor = builder.scalar(alpha, FLOAT32)
        inner = builder.op("Mul", x, factor, name=f"{name}/alpha", shape=x.shape)
    gate = builder.op("Sigmoid", inner, name=f"{name}/Sigmoid", shape=x.shape)
    lowering.put(node.outputs[0], builder.op("Mul", x, gate, name=f"{name}/Mul", shape=x.shape))


NORMS = {
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
    "LayerNormalization": "SkipLayerNormalization",
}


def lower_add(lowering: Lowering, node: Node) -> None:
    """Lower a residual sum; onnxruntime has one operator for it and the norm that follows."""
    norm = _norm_after(node) if lowering.contrib else None
    if norm is None or lowering.required(node.inputs[0]).shape is None:
        copied(lowering, node)
        return
    builder, total = lowering.builder, node.outputs[0]
    inputs = [lowering.required(value) for value in (*node.inputs, *norm.inputs[1:])]
    shape = inputs[0].shape
    outputs = [builder.value(norm.outputs[0].name, FLOAT32, shape)]
    only = len(total.uses) == 1 and total not in lowering.source.outputs
    if not only:
        outputs += [builder.value("", FLOAT32), builder.value("", FLOAT32)]
        outputs[1].name = outputs[2].name = ""
        outputs.append(builder.value(total.name, FLOAT32, shape))
        lowering.put(total, outputs[3])
    builder.node(
        NORMS[norm.op],
        inputs,
        outputs,
        domain=MICROSOFT,
        layer=norm.layer,
        epsilon=float(norm.attributes.get("epsilon", 1e-5)),
    )
    lowering.put(norm.outputs[0], outputs[0])
    lowering.done.add(id(norm))


def _norm_after(node: Node) -> Node | None:
    """Return the norm over the last axis that reads a sum of two computed values, if there is."""
    if any(value is None or value.constant is not None for value in node.inputs):
        return None
    for user, index in node.outputs[0].uses:
        last = user.attributes.get("axis", -1) == -1
        plain = user.op in NORMS and not user.domain and index == 0 and len(user.outputs) == 1
        if plain and last and _first_reader(node, user):
            return user
    return None


def _first_reader(node: Node, norm: Node) -> bool:
    """Whether nothing that the norm reads besides the sum is computed."""
    return all(v is not None and v.constant is not None for v in norm.inputs[1:])


def lower_rotary(lowering: Lowering, node: Node) -> None:
    """Lower RotaryEmbedding; onnxruntime's attention rotates queries and keys itself."""
    if lowering.contrib and attention.rotation_of(lowering.source, node.outputs[0]) is not None:
        return
    copied(lowering, node)


def lower_attention(lowering: Lowering, node: Node) -> None:
    """Lower halfbyte.CachedAttention."""
    cached = node.attributes.get("key_state")
    if cached and lowering.contrib:
        made = attention.grouped_query(lowering, node)
    elif cached and lowering.static:
        made = static_cache.external_cache(lowering, node)
    elif cached:
        made = attention.standard(lowering, node)
    else:
        made = attention.uncached(lowering, node)
    lowering.put(node.outputs[0], made)


TABLE: dict[str, Callable[[Lowering, Node], None]] = {
    "halfbyte.Linear": lower_linear,
    "halfbyte.CachedAttention": lower_attention,
    "Gather": lower_gather,
    "Swish": lower_swish,
    "Add": lower_add,
    "RotaryEmbedding": lower_rotary,
}

__all__ = ["TABLE", "Lowering", "version_of"]
