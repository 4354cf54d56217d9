"""Node names as onnxruntime-genai gives them: `/model/layers.0/attn/q_proj/MatMul`."""

from __future__ import annotations

import re
from dataclasses import replace

from halfbyte.ir.graph import Graph, Origin

# our stem, theirs; the first that matches a whole prefix wins
STEMS = (
    (r"layers\.(\d+)\.attention\.(?:rotated_)?query(?=[/_.]|$)", r"/model/layers.\1/attn/q_proj"),
    (r"layers\.(\d+)\.attention\.(?:rotated_)?key(?=[/_.]|$)", r"/model/layers.\1/attn/k_proj"),
    (r"layers\.(\d+)\.attention\.value(?=[/.]|$)", r"/model/layers.\1/attn/v_proj"),
    (r"layers\.(\d+)\.attention\.output(?=[/.]|$)", r"/model/layers.\1/attn/o_proj"),
    (r"layers\.(\d+)\.attention\.context(?=[/.]|$)", r"/model/layers.\1/attn"),
    (r"layers\.(\d+)\.attention_norm(?=[/.]|$)", r"/model/layers.\1/input_layernorm"),
    (
        r"layers\.(\d+)\.feed_forward_norm(?=[/.]|$)",
        r"/model/layers.\1/post_attention_layernorm",
    ),
    (r"layers\.(\d+)\.feed_forward\.(gate|up|down)(?=[/.]|$)", r"/model/layers.\1/mlp/\2_proj"),
    (r"layers\.(\d+)\.feed_forward\.activation(?=[/.]|$)", r"/model/layers.\1/mlp/act_fn"),
    (r"layers\.(\d+)\.feed_forward\.product(?=[/.]|$)", r"/model/layers.\1/mlp"),
    (r"layers\.(\d+)\.", r"/model/layers.\1/"),
    (r"embedding(?=[/.]|$)", "/model/embed_tokens"),
    (r"output_norm(?=[/.]|$)", "/model/final_norm"),
    (r"logits(?=[/.]|$)", "/lm_head"),
)
_STEMS = tuple((re.compile(pattern), theirs) for pattern, theirs in STEMS)


def node_name(value: str, op: str) -> str:
    """Return the name of the node that makes `value`."""
    for pattern, theirs in _STEMS:
        match = pattern.match(value)
        if match is not None:
            value = match.expand(theirs) + value[match.end() :]
            break
    return value if value.endswith(f"/{op}") else f"{value}/{op}"


def name_nodes(graph: Graph) -> None:
    """Give every node of a graph its name."""
    for node in graph.nodes:
        name = node_name(node.outputs[0].name, node.op)
        origin = node.origin or Origin("")
        node.origin = replace(origin, name=name)
