"""Weights that DequantizeLinear makes of stored codes become Affine weights.

Where every reader of the values is a product or a lookup that can read rows [out, in], or where
codes are looked up before they become values, the codes are handed over as they are: packed when
somebody reads them, never turned into floats here. The values stay the same; with scales of 16
bits they are not rounded to 16 bits again.

Left alone are products whose other side is dequantized too (they run in integers), scales along
both axes or in blocks across the rows, codes of more than 8 bits, and convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from halfbyte.ir.dtypes import numpy_dtype
from halfbyte.ir.encodings.affine import SCALE_SUFFIX, Affine
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node, Value
from halfbyte.ir.ops.spec import attribute, input_at
from halfbyte.ir.stored_codes import CodeRows, ScaleRows, ZeroRows
from halfbyte.ir.tensor import Part, Tensor

BITS = {"int8": 8, "uint8": 8, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2}
SMALL_ZEROS = 1 << 22
PAIR = ([1, 0], (1, 0), None)


@dataclass(frozen=True, eq=False)
class _Reader:
    """One node that reads the values. turned: it takes them as [in, out]; via: a Transpose."""

    node: Node
    turned: bool
    via: Node | None = None


def apply(graph: Graph) -> bool:
    """Absorb where possible, in subgraphs too; return whether anything changed."""
    changed = False
    for inner in _graphs(graph):
        for node in list(inner.nodes):
            if node.op == "DequantizeLinear" and not node.domain:
                changed |= _absorb(inner, node) or _absorb_lookup(inner, node)
    return changed


def _graphs(graph: Graph) -> Iterator[Graph]:
    yield graph
    for inner in graph.subgraphs():
        yield from _graphs(inner)


def _absorb(graph: Graph, node: Node) -> bool:
    readers = _readers(graph, node.outputs[0])
    if not readers or len({reader.turned for reader in readers}) != 1:
        return False
    weight = affine_weight(node, readers[0].turned)
    if weight is None:
        return False
    value = _shared(graph, weight)
    for reader in readers:
        _replace(graph, reader, value, node.outputs[0].dtype)
    _drop(graph, node)
    return True


def _absorb_lookup(graph: Graph, node: Node) -> bool:
    """Look up values where codes are looked up now; one scale is for all of them."""
    codes, scale = input_at(node, 0), input_at(node, 1)
    lookup = None if codes is None else codes.producer
    if lookup is None or codes is None or lookup.op != "Gather" or lookup.domain:
        return False
    alone = len(codes.uses) == 1 and codes not in graph.outputs
    result = node.outputs[0]
    if not alone or attribute(lookup, "axis", 0) or scale is None or result.dtype != "float32":
        return False
    if scale.constant is None or scale.constant.size != 1:
        return False
    weight = affine_weight(node, False, input_at(lookup, 0))
    if weight is None:
        return False
    inputs = [_shared(graph, weight), input_at(lookup, 1)]
    out = Value(result.name, result.dtype, result.shape)
    held, version = dict(lookup.attributes), lookup.since_version
    graph.insert(Node("Gather", inputs, [out], held, "", version, node.layer, node.origin), node)
    graph.replace_all_uses(result, out)
    _drop(graph, node)
    _drop(graph, lookup)
    return True


def _shared(graph: Graph, weight: Tensor) -> Value:
    """Return the constant of a weight; one over the same codes and scales is used again."""
    for name, other in graph.constants.items():
        if other.encoding == weight.encoding and other.parts == weight.parts:
            return graph.constant_value(name)
    value = graph.add_constant(weight)
    if value.name != weight.name:
        graph.set_constant(value.name, weight.renamed(value.name))
    return value


def affine_weight(node: Node, turned: bool, table: Value | None = None) -> Tensor | None:
    """Return the weight [out, in] that a DequantizeLinear makes, None where Affine has no such.

    turned: the stored codes are [in, out]. table: codes instead of the node's own.
    """
    codes, scales = _stored(table or input_at(node, 0)), _scales(input_at(node, 1))
    zeros = input_at(node, 2)
    if codes is None or scales is None or (zeros is not None and zeros.constant is None):
        return None
    dtype = getattr(codes.encoding, "dtype_name", "")
    if dtype not in BITS or len(codes.shape) != 2 or 0 in codes.shape:
        return None
    group = _group_size(node, codes, scales, turned)
    kind = getattr(scales.encoding, "dtype_name", "")
    if group is None or kind not in SCALE_SUFFIX:
        return None
    rows, columns = codes.shape[::-1] if turned else codes.shape
    groups = -(-columns // group) if group else 1
    points = None if zeros is None else zeros.constant
    bits, half = BITS[dtype], 1 << (BITS[dtype] - 1)
    lift = 0 if dtype.startswith("u") else half
    if points is not None and points.shape != scales.shape and scales.size * points.size != 1:
        return None
    symmetric = _all_equal(points, half - lift) if points is not None else lift == half
    parts: dict[str, Part] = {
        "codes": CodeRows(codes, turned, bits, lift),
        "scales": ScaleRows(scales, (rows, groups), turned, numpy_dtype(kind)),
    }
    if not symmetric:
        parts["zero_points"] = ZeroRows(points, (rows, groups), turned, np.dtype(np.uint8), lift)
    encoding = Affine(bits, group, "none" if symmetric else "uint8", kind)
    return Tensor(codes.name, (rows, columns), encoding, parts, codes.role, codes.layer, codes.kind)


def _stored(value: Value | None) -> Tensor | None:
    return None if value is None else value.constant


def _scales(value: Value | None) -> Tensor | None:
    """Return the stored scales; narrower ones that a Cast widens to float32 stay narrow."""
    if value is None or value.constant is not None or value.producer is None:
        return _stored(value)
    cast = value.producer
    if cast.op != "Cast" or cast.domain or value.dtype != "float32":
        return None
    return _stored(cast.inputs[0])


def _group_size(node: Node, codes: Tensor, scales: Tensor, turned: bool) -> int | None:
    """Return the columns of [out, in] that share a scale, 0 for all; None for other forms."""
    axis, block = int(attribute(node, "axis", 1)) % 2, int(attribute(node, "block_size", 0))
    into = 0 if turned else 1
    if scales.size == 1 and len(scales.shape) < 2:
        return 0
    if not block:
        fits = len(scales.shape) == 1 and scales.shape[0] == codes.shape[axis]
        return 0 if fits and axis != into else None
    blocks = -(-codes.shape[into] // block)
    wanted = (blocks, codes.shape[1]) if turned else (codes.shape[0], blocks)
    return block if axis == into and scales.shape == wanted else None


def _all_equal(zeros: Tensor, value: int) -> bool:
    if zeros.size > SMALL_ZEROS:
        return False
    return bool((zeros.numpy().astype(np.int16) == value).all())


def _readers(graph: Graph, value: Value) -> list[_Reader]:
    """Return every reader of the values, none if one of them cannot take an Affine weight."""
    found: list[_Reader] = []
    for node, index in value.uses:
        if node.op == "Transpose" and not node.domain and node.attributes.get("perm") in PAIR:
            behind = [_reader(user, place, node) for user, place in node.outputs[0].uses]
            if node.outputs[0] in graph.outputs:
                return []
        else:
            behind = [_reader(node, index, None)]
        if any(reader is None for reader in behind):
            return []
        found += [reader for reader in behind if reader is not None]
    return [] if value in graph.outputs else found


def _reader(node: Node, index: int, via: Node | None) -> _Reader | None:
    """Return how a node reads the weight at input `index`."""
    kinds: dict[str, Callable[[Node], bool | None]] = {
        "MatMul": lambda node: True,
        "Gemm": _gemm_turned,
        "Linear": lambda node: False,
        "Gather": lambda node: None if attribute(node, "axis", 0) else False,
    }
    plain = node.domain == (HALFBYTE_DOMAIN if node.op == "Linear" else "")
    if not plain or node.op not in kinds or index != (0 if node.op == "Gather" else 1):
        return None
    turned = kinds[node.op](node)
    if turned is None or (node.op != "Gather" and _in_integers(node.inputs[0])):
        return None
    if via is None:
        return _Reader(node, turned)
    return None if node.op == "Gather" else _Reader(node, not turned, via)


def _gemm_turned(node: Node) -> bool | None:
    held = node.attributes
    if held.get("alpha", 1.0) != 1.0 or held.get("beta", 1.0) != 1.0 or held.get("transA", 0):
        return None
    return not held.get("transB", 0)


def _in_integers(value: Value | None) -> bool:
    """Whether the other side of a product comes from codes."""
    producer = None if value is None else value.producer
    return producer is not None and producer.op == "DequantizeLinear"


def _replace(graph: Graph, reader: _Reader, weight: Value, dtype: str | None) -> None:
    node = reader.node
    if node.op == "Linear":
        graph.set_input(node, 1, weight)
    elif node.op == "Gather":
        graph.set_input(node, 0, weight)
        if dtype not in (None, "float32"):
            _cast_back(graph, node, dtype)
    else:
        _as_linear(graph, node, weight)
    if reader.via is not None:
        _drop(graph, reader.via)


def _cast_back(graph: Graph, node: Node, dtype: str | None) -> None:
    """Let what was read in another dtype stay in it: an encoded table gives float32."""
    old = node.outputs[0]
    wide = Value(graph.fresh_name(f"{old.name}.wide"), "float32", old.shape)
    inputs, attributes = list(node.inputs), dict(node.attributes)
    made = Node(node.op, inputs, [wide], attributes, node.domain, node.since_version, node.layer)
    graph.insert(made, before=node)
    narrow = Value(old.name, dtype, old.shape)
    graph.insert(Node("Cast", [wide], [narrow], {"to": dtype}, "", 13, node.layer), before=node)
    graph.replace_all_uses(old, narrow)
    graph.remove(node)


def _as_linear(graph: Graph, node: Node, weight: Value) -> None:
    """Put Linear in the place of a product; a bias that is no stored row is added behind it."""
    old = node.outputs[0]
    bias = input_at(node, 2)
    row = bias is None or (bias.constant is not None and len(bias.constant.shape) == 1)
    inside = [bias] if bias is not None and row and bias.shape == (weight.shape or ())[:1] else []
    first = Value(old.name, old.dtype, old.shape)
    if bias is not None and not inside:
        first = Value(graph.fresh_name(f"{old.name}.product"), old.dtype, old.shape)
    linear = Node("Linear", [node.inputs[0], weight, *inside], [first], {}, HALFBYTE_DOMAIN, 1)
    linear.layer, linear.origin = node.layer, node.origin
    graph.insert(linear, before=node)
    last = first
    if bias is not None and not inside:
        last = Value(old.name, old.dtype, old.shape)
        graph.insert(Node("Add", [first, bias], [last], {}, "", 14, node.layer), before=node)
    graph.replace_all_uses(old, last)
    graph.remove(node)


def _drop(graph: Graph, node: Node) -> None:
    """Remove a node that nothing reads, what only it read, and its constants."""
    if any(value.uses or value in graph.outputs for value in node.outputs):
        return
    inputs = {value for value in node.inputs if value is not None}
    graph.remove(node)
    for value in inputs:
        if value.uses or value in graph.outputs:
            continue
        if value.constant is not None:
            graph.remove_constant(value.name)
        elif value.producer is not None and value.producer.op == "Cast":
            _drop(graph, value.producer)
