"""Compute nodes whose inputs are all constant, within bounds on result size and work."""

from __future__ import annotations

import math

import numpy as np

from halfbyte.ir.dtypes import FIXED_SIZE, numpy_dtype
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops import OPS, op_key, spec_of
from halfbyte.ir.ops.spec import Context, adapts
from halfbyte.ir.passes.dead_code import has_effect, has_graphs, is_random
from halfbyte.ir.tensor import Tensor, tensor_from_array

MAX_RESULT_BYTES = 16 << 20
MAX_INPUT_ELEMENTS = 4 << 20
MAX_TOTAL_BYTES = 256 << 20
MAX_NODES = 10_000
# Their work grows faster than their inputs and results.
HEAVY = frozenset(
    {
        *("MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose", "DeformConv", "Linear", "Det"),
        *("LSTM", "GRU", "RNN", "Attention", "CachedAttention", "DFT", "STFT", "GridSample"),
        *("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "NonMaxSuppression"),
    }
)
MAX_HEAVY_ELEMENTS = 1 << 16


def foldable(node: Node) -> bool:
    """Whether inputs are small plain constants and the results are known to be small.

    Encoded weights stay encoded: a node that reads one is not folded.
    """
    if has_effect(node) or is_random(node) or has_graphs(node):
        return False
    if op_key(node.op, node.domain) not in OPS:
        return False
    for value in node.inputs:
        if value is None:
            continue
        tensor = value.constant
        limit = MAX_HEAVY_ELEMENTS if node.op in HEAVY else MAX_INPUT_ELEMENTS
        if tensor is None or tensor.encoding.is_quantized or tensor.size > limit:
            return False
    for kind in spec_of(node).infer(node):
        if kind.shape is None or kind.dtype is None or kind.dtype not in FIXED_SIZE:
            return False
        dims = [dim for dim in kind.shape if isinstance(dim, int)]
        if len(dims) != len(kind.shape):
            return False
        if math.prod(dims) * numpy_dtype(kind.dtype).itemsize > MAX_RESULT_BYTES:
            return False
    return True


def operand(value: Value | None) -> object:
    """Return a constant's values, 16-bit floats widened as their readers would see them."""
    if value is None or value.constant is None:
        return None
    tensor: Tensor = value.constant
    narrow = adapts(value) and value.dtype not in ("float32", "float64")
    return tensor.numpy().astype(np.float32) if narrow else tensor.numpy()


def fold(graph: Graph, node: Node) -> int:
    """Replace a node by the constants that it yields; return their bytes."""
    spec = spec_of(node)
    operands = [operand(value) for value in node.inputs]
    fixed = any(value is not None and value.fixed for value in node.inputs)
    context = Context(outputs=len(node.outputs))
    with np.errstate(all="ignore"):
        results = spec.evaluate(operands, spec.with_defaults(node.attributes), context)
    for value, result in zip(node.outputs, results, strict=False):
        dtype = result.dtype if value.dtype is None else numpy_dtype(value.dtype)
        tensor = tensor_from_array(graph.fresh_name(f"{value.name}.folded"), result.astype(dtype))
        graph.replace_all_uses(value, graph.add_constant(tensor, fixed=fixed))
    graph.remove(node)
    return sum(result.nbytes for result in results)


def apply(graph: Graph) -> bool:
    """Fold in topological order, at most MAX_NODES nodes and MAX_TOTAL_BYTES of results."""
    folded = held = 0
    outputs = set(graph.outputs)
    for node in list(graph.nodes):
        if folded == MAX_NODES or held > MAX_TOTAL_BYTES:
            break
        if not any(value in outputs for value in node.outputs) and foldable(node):
            held += fold(graph, node)
            folded += 1
    return folded > 0
