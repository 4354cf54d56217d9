"""Attention with keys and values as inputs and outputs of the graph.

Past keys and values come as [batch, key-value heads, past, head], the present ones leave in the
same form. Standard: Attention with an explicit mask, so that padding, windows and causality mean
the same in every runtime. onnxruntime: GroupQueryAttention, which rotates queries and keys from
tables and knows how many positions each sequence has.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from halfbyte.converters.onnx.language.builder import FLOAT32, MICROSOFT, OnnxBuilder
from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import Graph, Node, Value

if TYPE_CHECKING:
    from halfbyte.converters.onnx.language.lowering import Lowering

IDS, MASK, POSITIONS = "input_ids", "attention_mask", "position_ids"
PAST, PRESENT = "past_key_values.{}.{}", "present.{}.{}"
BATCH, SEQUENCE, TOTAL = "batch_size", "sequence_length", "total_sequence_length"


@dataclass
class CacheValues:
    """Inputs and outputs of the cache, in the order of the layers."""

    past: list[Value] = field(default_factory=list)
    present: list[Value] = field(default_factory=list)


@dataclass(frozen=True)
class Rotation:
    """A rotary embedding whose cosine and sine depend on the position alone."""

    node: Node
    cosine: Value
    sine: Value


def rotation_of(graph: Graph, value: Value) -> Rotation | None:
    """Return the rotation that made an attention's query or key, if tables can say it."""
    node = value.producer
    if node is None or node.op != "RotaryEmbedding" or node.domain or len(node.inputs) != 3:
        return None
    cosine, sine = node.inputs[1:]
    assert cosine is not None and sine is not None
    users = {user.op for user, _ in value.uses}
    if users != {"CachedAttention"} or value in graph.outputs:
        return None
    positions = [v for v in graph.inputs if v.name == POSITIONS]
    found = _chain(cosine, positions), _chain(sine, positions)
    return Rotation(node, cosine, sine) if all(found) else None


_POINTWISE = {"Cast", "Unsqueeze", "Mul", "Cos", "Sin", "Add", "Sub", "Div"}


def _chain(value: Value, roots: list[Value]) -> list[Node]:
    """Return the nodes between positions and a value, in order; [] if one mixes positions."""
    found: list[Node] = []
    reached = [False]

    def visit(current: Value) -> bool:
        if current in roots:
            reached[0] = True
            return True
        node = current.producer
        if node is None:
            return current.constant is not None
        if node in found:
            return True
        if node.op not in _POINTWISE or node.domain:
            return False
        if not all(visit(v) for v in node.inputs if v is not None):
            return False
        found.append(node)
        return True

    return found if visit(value) and reached[0] else []


def _table(lowering: Lowering, value: Value, what: str) -> Value:
    """Return cosine or sine of every position, [positions, pairs]; runtimes fold it."""
    builder = lowering.builder
    roots = [v for v in lowering.source.inputs if v.name == POSITIONS]

    def every() -> Value:
        zero, one = builder.scalar(0), builder.scalar(1)
        limit = builder.scalar(lowering.positions)
        shape = (lowering.positions,)
        row = builder.op(
            "Range", zero, limit, one, name="/rotary/positions", dtype="int64", shape=shape
        )
        return builder.op(
            "Unsqueeze", row, builder.ints(0), name="/rotary/row", dtype="int64", shape=(1, *shape)
        )

    def make() -> Value:
        values: dict[Value, Value] = {root: builder.once("every position", every) for root in roots}
        for node in _chain(value, roots):
            old = node.outputs[0]
            values[old] = builder.once(
                ("table", id(old)), lambda n=node, o=old: _again(lowering, n, o, values)
            )
        pairs = int((value.shape or (0,))[-1])
        wanted = builder.ints(lowering.positions, pairs)
        return builder.op(
            "Reshape",
            values[value],
            wanted,
            name=f"{what}_cache",
            shape=(lowering.positions, pairs),
            allowzero=0,
        )

    return builder.once(("rotary table", id(value)), make)


def _again(lowering: Lowering, node: Node, old: Value, values: dict[Value, Value]) -> Value:
    """Add a node once more, over all positions instead of those of a step."""
    inputs = [values[v] if v in values else lowering.of(v) for v in node.inputs]
    out = lowering.builder.value(f"/rotary/{old.name}", old.dtype or FLOAT32)
    lowering.builder.graph.insert(replace(node, inputs=inputs, outputs=[out]))
    return out


def layer_of(node: Node) -> int:
    """Return the layer of an attention."""
    if node.layer is not None:
        return node.layer
    return int(str(node.attributes["key_state"]).rsplit(".", 1)[-1])


def _cache(lowering: Lowering, node: Node) -> tuple[list[Value], list[Value]]:
    """Return past and present key and value of one attention."""
    builder, layer = lowering.builder, layer_of(node)
    past, present = [], []
    for name in ("key", "value"):
        state = lowering.source.states[node.attributes[f"{name}_state"]]
        heads, size = state.shape[1], state.shape[3]
        shape = (BATCH, heads, "past_sequence_length", size)
        past.append(builder.graph.add_input(PAST.format(layer, name), FLOAT32, shape))
        shape = (BATCH, heads, TOTAL, size)
        present.append(builder.value(PRESENT.format(layer, name), FLOAT32, shape))
    lowering.cache.past += past
    lowering.cache.present += present
    return past, present


def attention_scale(node: Node, query: Value, heads: int) -> float:
    """Return what the scores are multiplied with."""
    width = int((query.shape or (0,))[-1])
    return float(node.attributes.get("scale") or (width // heads) ** -0.5)


def attention_mask(lowering: Lowering) -> Value:
    """Return the input that says which positions, past ones included, hold tokens."""
    builder = lowering.builder
    return builder.once(MASK, lambda: builder.graph.add_input(MASK, "int64", (BATCH, TOTAL)))


def grouped_query(lowering: Lowering, node: Node) -> Value:
    """Lower to GroupQueryAttention, rotation included where tables can say it."""
    builder, attributes = lowering.builder, node.attributes
    heads, groups = attributes["num_heads"], attributes["num_kv_heads"]
    rotations = [rotation_of(lowering.source, v) for v in node.inputs[:2] if v is not None]
    query, key, value = node.inputs[:3]
    inputs: list[Value | None]
    tables: list[Value] = []
    settings: dict[str, Any] = {"do_rotary": 0}
    if all(r is not None for r in rotations):
        first = rotations[0]
        assert first is not None
        sources = [r.node.inputs[0] for r in rotations if r is not None]
        tables = [_table(lowering, first.cosine, "cos"), _table(lowering, first.sine, "sin")]
        interleaved = int(first.node.attributes.get("interleaved") or 0)
        settings = {"do_rotary": 1, "rotary_interleaved": interleaved}
    else:
        sources = [query, key]
    inputs = [lowering.of(v) for v in (*sources, value)]
    assert inputs[0] is not None
    past, present = _cache(lowering, node)
    lengths = builder.once("lengths", lambda: _lengths(builder, attention_mask(lowering)))
    total = builder.once("total", lambda: _total(builder, attention_mask(lowering)))
    out = builder.value(node.outputs[0].name, FLOAT32, inputs[0].shape)
    softcap = float(attributes.get("softcap") or 0.0)
    builder.node(
        "GroupQueryAttention",
        [*inputs, *past, lengths, total, *tables],
        [out, *present],
        domain=MICROSOFT,
        layer=node.layer,
        num_heads=heads,
        kv_num_heads=groups,
        scale=attention_scale(node, inputs[0], heads),
        local_window_size=int(attributes.get("window") or 0) or -1,
        softcap=softcap,
        **settings,
    )
    return out


def _lengths(builder: OnnxBuilder, mask: Value) -> Value:
    """Return the index of the last token of every sequence: [batch] int32."""
    counts = builder.op(
        "ReduceSum", mask, builder.ints(1), name="/attention/tokens", dtype="int64",
        shape=(BATCH,), keepdims=0,
    )  # fmt: skip
    last = builder.op(
        "Sub", counts, builder.ints(1), name="/attention/last", dtype="int64", shape=(BATCH,)
    )
    return builder.op(
        "Cast", last, name="/attention/seqlens_k", dtype="int32", shape=(BATCH,), to="int32"
    )


def dimension(builder: OnnxBuilder, value: Value, axis: int, name: str) -> Value:
    """Return one dimension as an int64 scalar."""
    shape = builder.op(
        "Shape", value, name=f"{name}/Shape", dtype="int64", shape=(len(value.shape or ()),)
    )
    index = builder.scalar(axis)
    return builder.op("Gather", shape, index, name=name, dtype="int64", shape=(), axis=0)


def _total(builder: OnnxBuilder, mask: Value) -> Value:
    length = dimension(builder, mask, 1, "/attention/total")
    return builder.op(
        "Cast", length, name="/attention/total_sequence_length", dtype="int32", shape=(), to="int32"
    )


def standard(lowering: Lowering, node: Node) -> Value:
    """Lower to ai.onnx's Attention over past and present keys and values."""
    window = int(node.attributes.get("window") or 0)
    builder = lowering.builder
    mask = builder.once(("visible", window), lambda: _visible(lowering, window))
    past, present = _cache(lowering, node)
    return _attention(lowering, node, mask, past, present)


def _attention(
    lowering: Lowering, node: Node, mask: Value | None, past: list[Value], present: list[Value]
) -> Value:
    builder, attributes = lowering.builder, node.attributes
    inputs = [lowering.of(value) for value in node.inputs[:3]]
    assert inputs[0] is not None
    heads = attributes["num_heads"]
    out = builder.value(node.outputs[0].name, FLOAT32, inputs[0].shape)
    builder.node(
        "Attention",
        [*inputs, mask, *past],
        [out, *present],
        layer=node.layer,
        q_num_heads=heads,
        kv_num_heads=attributes["num_kv_heads"],
        scale=attention_scale(node, inputs[0], heads),
        softcap=float(attributes.get("softcap") or 0.0),
        is_causal=0,
    )
    return out


def _visible(lowering: Lowering, window: int) -> Value:
    """Return [batch, 1, sequence, total] bool: which positions each new one may see.

    A position always sees itself, also where it is padding: a row that sees nothing has no mean.
    """
    builder = lowering.builder
    keys = builder.once("keys", lambda: _keys(lowering))
    queries = builder.once("queries", lambda: _queries(lowering))
    stem = "/attention/mask"
    grid = (SEQUENCE, TOTAL)

    def compare(op: str, left: Value, right: Value, name: str) -> Value:
        return builder.op(op, left, right, name=f"{stem}/{name}", dtype="bool", shape=grid)

    seen = builder.once("causal", lambda: compare("LessOrEqual", keys, queries, "causal"))
    if window:
        edge = builder.op(
            "Sub", queries, builder.scalar(window), name=f"{stem}/edge_{window}", dtype="int64",
            shape=(SEQUENCE, 1),
        )  # fmt: skip
        near = compare("Greater", keys, edge, f"near_{window}")
        seen = compare("And", seen, near, f"window_{window}")
    held = builder.once("held", lambda: _held(lowering, keys, queries))
    return builder.op(
        "And", seen, held, name=f"{stem}/visible_{window}", dtype="bool",
        shape=(BATCH, 1, SEQUENCE, TOTAL),
    )  # fmt: skip


def _held(lowering: Lowering, keys: Value, queries: Value) -> Value:
    builder, stem = lowering.builder, "/attention/mask"
    own = builder.op(
        "Equal", keys, queries, name=f"{stem}/own", dtype="bool", shape=(SEQUENCE, TOTAL)
    )
    tokens = _spread_mask(builder, attention_mask(lowering), TOTAL)
    return builder.op(
        "Or", tokens, own, name=f"{stem}/held", dtype="bool", shape=(BATCH, 1, SEQUENCE, TOTAL)
    )


def _spread_mask(builder: OnnxBuilder, mask: Value, length: str) -> Value:
    tokens = builder.cast(mask, "bool")
    return builder.op(
        "Unsqueeze", tokens, builder.ints(1, 2), name="/attention/mask/tokens", dtype="bool",
        shape=(BATCH, 1, 1, length),
    )  # fmt: skip


def _all_positions(lowering: Lowering) -> Value:
    """Return how many positions there are, past and new: int64 scalar."""
    builder = lowering.builder
    return builder.once(
        "all positions", lambda: dimension(builder, attention_mask(lowering), 1, "/attention/total")
    )


def _keys(lowering: Lowering) -> Value:
    """Return the place of every key, [total]."""
    builder, total = lowering.builder, _all_positions(lowering)
    zero, one = builder.scalar(0), builder.scalar(1)
    return builder.op(
        "Range", zero, total, one, name="/attention/keys", dtype="int64", shape=(TOTAL,)
    )


def _queries(lowering: Lowering) -> Value:
    """Return the place of every new position, [sequence, 1]."""
    builder, total = lowering.builder, _all_positions(lowering)
    ids = lowering.required(next(v for v in lowering.source.inputs if v.name == IDS))
    length = dimension(builder, ids, 1, "/attention/sequence")
    first = builder.op("Sub", total, length, name="/attention/first", dtype="int64", shape=())
    row = builder.op(
        "Range", first, total, builder.scalar(1), name="/attention/queries", dtype="int64",
        shape=(SEQUENCE,),
    )  # fmt: skip
    return builder.op(
        "Unsqueeze", row, builder.ints(-1), name="/attention/query_column", dtype="int64",
        shape=(SEQUENCE, 1),
    )  # fmt: skip


def uncached(lowering: Lowering, node: Node) -> Value:
    """Lower an encoder's attention: every position sees every token."""
    if node.attributes.get("causal", 1) or node.attributes.get("window"):
        raise UnsupportedError("causal attention without a cache", "--to onnx")
    mask = lowering.of(node.inputs[3]) if len(node.inputs) > 3 else None
    builder = lowering.builder
    if mask is not None:
        given = mask
        mask = builder.once("tokens", lambda: _every_row(builder, given))
    return _attention(lowering, node, mask, [], [])


def _every_row(builder: OnnxBuilder, mask: Value) -> Value:
    """Return [batch, 1, sequence, sequence] bool: which positions hold tokens, for each position.

    onnxruntime does not broadcast a mask over queries.
    """
    tokens = _spread_mask(builder, mask, SEQUENCE)
    length = builder.op(
        "Shape", mask, name="/attention/mask/Shape", dtype="int64", shape=(1,), start=1, end=2
    )
    wanted = builder.node(
        "Concat",
        [builder.ints(1, 1), length, builder.ints(1)],
        [builder.value("/attention/mask/shape", "int64", (4,))],
        axis=0,
    ).outputs[0]
    return builder.op(
        "Expand", tokens, wanted, name="/attention/mask/rows", dtype="bool",
        shape=(BATCH, 1, SEQUENCE, SEQUENCE),
    )  # fmt: skip
