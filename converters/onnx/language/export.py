"""A language model's graph as ONNX: explicit cache, dynamic batch and sequence, two flavours."""

from __future__ import annotations

from dataclasses import dataclass

from halfbyte.converters.onnx.language.attention import IDS, MASK, attention_mask
from halfbyte.converters.onnx.language.builder import Holding, OnnxBuilder
from halfbyte.converters.onnx.language.lowering import POSITIONS, Lowering, dims
from halfbyte.ir.graph import Graph
from halfbyte.ir.model import Model
from halfbyte.ir.passes import dead_code

STANDARD, ORT = "", "ort"
FLAVOURS = (STANDARD, ORT)
DEFAULT_POSITIONS = 2048


@dataclass(frozen=True)
class Export:
    """A graph of ONNX operators and what of each weight its constants hold, by weight name."""

    graph: Graph
    holdings: dict[str, Holding]


def export_graph(model: Model, flavour: str = STANDARD) -> Export:
    """Return the model's graph in a flavour: `` standard operators, `ort` onnxruntime's.

    Inputs: input_ids, attention_mask [batch, past + sequence], position_ids where the graph needs
    it, past_key_values.N.key and .value. Outputs: logits of every position, present.N.key and
    .value. An encoder keeps its inputs and outputs. Shorter texts of a batch are padded on the left
    in the standard flavour, on the right for onnxruntime, whose attention counts tokens.

    Raises:
        UnsupportedError: an operator or encoding has no form in ONNX.
    """
    source = model.graph
    builder = OnnxBuilder(source.name)
    positions = int(model.config.get("max_position_embeddings") or DEFAULT_POSITIONS)
    lowering = Lowering(source, builder, flavour == ORT, positions)
    for value in source.inputs:
        if value.name in (IDS, MASK, "token_type_ids"):
            made = builder.graph.add_input(value.name, value.dtype or "int64", dims(value) or ())
            lowering.put(value, made)
            if value.name == MASK:
                builder.once(MASK, lambda made=made: made)
    if source.states:
        attention_mask(lowering)
    lowering.run()
    graph = builder.graph
    for value in source.outputs:
        graph.outputs.append(lowering.required(value))
        graph.outputs[-1].name = value.name
    graph.outputs += lowering.cache.present
    dead_code.apply(graph)
    graph.inputs = [v for v in graph.inputs if v.uses or v.name in (IDS, MASK)]
    order = {name: index for index, name in enumerate((IDS, MASK, POSITIONS, "token_type_ids"))}
    graph.inputs.sort(key=lambda value: order.get(value.name, len(order)))
    by_id = {id(tensor): name for name, tensor in model.weights.items()}
    holdings = {by_id[key]: held for key, held in builder.holdings.items() if key in by_id}
    return Export(graph, holdings)
