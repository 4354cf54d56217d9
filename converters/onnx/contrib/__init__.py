"""Operators of onnxruntime's domain `com.microsoft`, each put in terms of standard ones.

So is the standard's Gradient, which differentiates the graph that it stands in. Each module has
`lower(graph, node)`, which replaces the node in place by nodes of ai.onnx and halfbyte with the
same meaning.
"""

from __future__ import annotations

from importlib import import_module

from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.ops import OPS, op_key, spec_of

DOMAIN = "com.microsoft"
GRADIENT = "ai.onnx.preview.training", "Gradient"
FAMILIES: dict[str, tuple[str, ...]] = {
    "activation": ("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "BiasSplitGelu", "BiasAdd"),
    "attention": ("Attention", "QAttention"),
    "dynamic_quantize_lstm": ("DynamicQuantizeLSTM",),
    "fused": (
        *("FusedMatMul", "TransposeMatMul", "FusedGemm", "FusedMatMulActivation"),
        *("FusedConv", "NhwcConv", "NhwcFusedConv", "NhwcMaxPool"),
    ),
    "gather_block_quantized": ("GatherBlockQuantized",),
    "gradient": ("Gradient",),
    "group_query_attention": ("GroupQueryAttention",),
    "integer_matmul": ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm", "MulInteger"),
    "matmul_bnb4": ("MatMulBnb4",),
    "matmul_nbits": ("MatMulNBits",),
    "mixture_of_experts": ("MoE", "QMoE"),
    "multi_head_attention": ("MultiHeadAttention",),
    "normalization": (
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
        *("EmbedLayerNormalization", "GroupNorm", "SkipGroupNorm"),
        *("SimplifiedLayerNormalization", "LayerNormalization"),
    ),
    "plain": (
        *("Pad", "Trilu", "ExpandDims", "Range", "GatherND", "GridSample", "CDist", "Unique"),
        *("SparseToDenseMatMul", "ReduceSumInteger"),
    ),
    "quantized": (
        *("QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"),
        *("QLinearConcat", "QLinearWhere", "QLinearReduceMean", "QLinearAveragePool"),
        *("QLinearGlobalAveragePool", "QLinearConv", "QuantizeLinear", "DequantizeLinear"),
    ),
    "rotary_embedding": ("RotaryEmbedding",),
}
CONTRIB: dict[str, str] = {
    op: f"halfbyte.converters.onnx.contrib.{family}"
    for family, ops in FAMILIES.items()
    for op in ops
}
# onnxruntime registers these in the standard domain, where the standard has none (of version 1).
IN_STANDARD_DOMAIN = frozenset({"SimplifiedLayerNormalization", "LayerNormalization"})


def is_contrib(node: Node) -> bool:
    """Whether a node is an operator of onnxruntime's own."""
    if node.domain == DOMAIN or (node.domain, node.op) == GRADIENT:
        return True
    in_standard = node.domain == "" and node.op in IN_STANDARD_DOMAIN
    return in_standard and (node.op not in OPS or node.since_version < 17)


def lower(graph: Graph, node: Node) -> None:
    """Replace one node of onnxruntime's domain in place.

    Raises:
        UnsupportedError: the operator, or this form of it, is not read.
    """
    if node.op not in CONTRIB:
        raise UnsupportedError(
            f"operator '{DOMAIN}.{node.op}'", f"graph node {node.label}", sorted(CONTRIB)
        )
    import_module(CONTRIB[node.op]).lower(graph, node)


def lower_all(graph: Graph) -> bool:
    """Replace every such node, types inferred on the way, in subgraphs too; whether any was.

    Raises:
        UnsupportedError: an operator, or a form of it, is not read.
    """
    changed = False
    for node in list(graph.nodes):
        for subgraph in graph.subgraphs([node]):
            changed |= lower_all(subgraph)
        if is_contrib(node):
            lower(graph, node)
            changed = True
        elif op_key(node.op, node.domain) in OPS:
            _infer(node)
    return changed


def _infer(node: Node) -> None:
    for value, kind in zip(node.outputs, spec_of(node).infer(node), strict=False):
        value.dtype = kind.dtype or value.dtype
        value.shape = value.shape if kind.shape is None else kind.shape
