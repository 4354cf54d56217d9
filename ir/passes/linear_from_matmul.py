"""Make a Linear of each product with a stored matrix.

MatMul and Gemm keep their weight as [in, out] or, under transB, as [out, in]; Linear has [out, in]
and its rows can be quantized one by one. A weight is turned lazily and for all its readers or for
none, so that a tied weight stays one tensor; only floats are taken, of which Linear loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node, Value
from halfbyte.ir.tensor import Tensor
from halfbyte.ir.transposed import transposed

DTYPES = frozenset({"float32", "float16", "bfloat16"})


@dataclass(frozen=True, eq=False)
class _Product:
    """A node that can become a Linear of `out` columns. direct: its weight is [out, in] already."""

    graph: Graph
    node: Node
    weight: Value
    direct: bool
    out: int
    bias: Value | None = None


def apply(graph: Graph) -> bool:
    """Replace products with stored matrices, in subgraphs too; return whether any was."""
    groups: dict[int, list[_Product]] = {}
    uses: dict[int, int] = {}
    holders: dict[int, dict[Value, Graph]] = {}
    for inner in _graphs(graph):
        for name, tensor in inner.constants.items():
            value = inner.constant_value(name)
            holders.setdefault(id(tensor), {})[value] = inner
            uses[id(tensor)] = uses.get(id(tensor), 0) + len(value.uses)
            if any(value.constant is tensor for value in inner.outputs):
                uses[id(tensor)] += 1
        for node in inner.nodes:
            product = _product(inner, node)
            if product is not None:
                groups.setdefault(id(product.weight.constant), []).append(product)
    changed = False
    for key, products in groups.items():
        direct = [product.direct for product in products]
        if any(direct) and not all(direct):
            continue
        if not any(direct):
            if uses[key] != len(products):
                continue
            _turn(holders[key])
        for product in products:
            _replace(product)
        changed = True
    return changed


def _turn(values: dict[Value, Graph]) -> None:
    """Exchange one tensor for its transpose in every graph that holds it, read there or not."""
    tensor = next(iter(values)).constant
    assert tensor is not None
    turned = transposed(tensor)
    for value, graph in values.items():
        graph.set_constant(value.name, turned)
        value.shape = turned.shape


def _graphs(graph: Graph) -> Iterator[Graph]:
    yield graph
    for inner in graph.subgraphs():
        yield from _graphs(inner)


def _product(graph: Graph, node: Node) -> _Product | None:
    """Return what a node is as a product with a stored matrix."""
    if node.domain or node.op not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return None
    data, weight = node.inputs[:2]
    if data is None or weight is None:
        return None
    if node.op == "MatMul":
        stored = _matrix(weight)
        if stored is not None:
            return _Product(graph, node, weight, False, stored.shape[1])
        source = _transpose_of(weight)
        stored = None if source is None else _matrix(source)
        if source is None or stored is None:
            return None
        return _Product(graph, node, source, True, stored.shape[0])
    return _gemm(graph, node, weight)


def _gemm(graph: Graph, node: Node, weight: Value) -> _Product | None:
    stored = _matrix(weight)
    held = node.attributes
    scaled = held.get("alpha", 1.0) != 1.0 or held.get("beta", 1.0) != 1.0
    if stored is None or scaled or held.get("transA", 0) or node.since_version < 7:
        return None
    direct = bool(held.get("transB", 0))
    third = node.inputs[2] if len(node.inputs) > 2 else None
    out = stored.shape[0 if direct else 1]
    if third is not None and not _is_row(third, out):
        return None
    return _Product(graph, node, weight, direct, out, third)


def _matrix(value: Value) -> Tensor | None:
    """Return the tensor of a stored float matrix."""
    tensor = value.constant
    if tensor is None or len(tensor.shape) != 2 or tensor.encoding.is_quantized:
        return None
    return tensor if value.dtype in DTYPES and 0 not in tensor.shape else None


def _transpose_of(value: Value) -> Value | None:
    """Return the stored matrix that a value is the transpose of."""
    node = value.producer
    if node is None or node.op != "Transpose" or node.domain:
        return None
    source = node.inputs[0]
    return source if node.attributes.get("perm") in (None, [1, 0], (1, 0)) else None


def _is_row(value: Value, length: int) -> bool:
    """Whether a value is a stored row of `length` that can be a bias."""
    tensor = value.constant
    if tensor is None or value.dtype not in DTYPES:
        return False
    return tensor.shape == (length,) or (tensor.shape == (1, length) and len(value.uses) == 1)


def _bias_node(product: _Product) -> tuple[Node, Value] | None:
    """Return the Add of a stored row that alone reads a MatMul, and the row."""
    result = product.node.outputs[0]
    if product.node.op != "MatMul" or len(result.uses) != 1 or result in product.graph.outputs:
        return None
    node, index = result.uses[0]
    if node.op != "Add" or node.domain or node.since_version < 7:
        return None
    row = node.inputs[1 - index]
    if row is None or row.constant is None or row.dtype != product.weight.dtype:
        return None
    return (node, row) if row.constant.shape == (product.out,) else None


def _replace(product: _Product) -> None:
    graph, node = product.graph, product.node
    found = _bias_node(product)
    bias, last = (product.bias, node) if found is None else (found[1], found[0])
    if bias is not None and bias.constant is not None and len(bias.constant.shape) == 2:
        graph.set_constant(bias.name, replace(bias.constant, shape=(product.out,)))
        bias.shape = (product.out,)
    inputs = [node.inputs[0], product.weight]
    inputs += [] if bias is None else [bias]
    old = last.outputs[0]
    result = Value(old.name, old.dtype, old.shape)
    origin = node.origin or last.origin
    linear = Node("Linear", inputs, [result], {}, HALFBYTE_DOMAIN, 1, node.layer, origin)
    graph.insert(linear, before=last)
    graph.replace_all_uses(old, result)
    graph.remove(last)
    if last is not node:
        graph.remove(node)
    source = node.inputs[1]
    if source is not product.weight and source is not None and not source.uses:
        _drop_transpose(graph, source)


def _drop_transpose(graph: Graph, value: Value) -> None:
    """Remove a Transpose of a weight that nothing reads any more."""
    if value.producer is not None and value not in graph.outputs:
        graph.remove(value.producer)
