"""A language model's graph as ONNX: explicit cache, dynamic batch and sequence, in flavours."""

from __future__ import annotations

from dataclasses import dataclass

from halfbyte.converters.onnx.language import static_cache
from halfbyte.converters.onnx.language.attention import IDS, MASK, attention_mask
from halfbyte.converters.onnx.language.builder import OPSET, Holding, OnnxBuilder
from halfbyte.converters.onnx.language.lowering import POSITIONS, Lowering, dims
from halfbyte.converters.onnx.profile import ORT, STANDARD, STATIC
from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph
from halfbyte.ir.model import Model
from halfbyte.ir.passes import dead_code

DEFAULT_POSITIONS = 2048
EXPERTS = "ExpertLinear"
FIRST_INPUTS = (
    *(IDS, MASK, POSITIONS, "token_type_ids"),
    *(static_cache.WRITE_INDICES, static_cache.LENGTHS),
)


@dataclass(frozen=True)
class Export:
    """A graph of ONNX operators and what of each weight its constants hold, by weight name."""

    graph: Graph
    holdings: dict[str, Holding]


def require_dense(graph: Graph) -> None:
    """Raise UnsupportedError for a graph with experts, naming the first of their weights."""
    found = next((n for n in graph.nodes if (n.domain, n.op) == (HALFBYTE_DOMAIN, EXPERTS)), None)
    if found is not None and found.inputs[1] is not None:
        advice = "no standard operator multiplies rows by matrices of their own: write gguf, hb, hf"
        what = f"the mixture of experts over {found.inputs[1].name!r}"
        raise UnsupportedError(what, "ONNX", (), advice)


def export_graph(model: Model, flavour: str = STANDARD, opset: int | None = None) -> Export:
    """Return the model's graph in a flavour.

    `` has standard operators, `static` those with caches of a fixed length, `ort` onnxruntime's.
    Inputs: input_ids, attention_mask [batch, past + sequence], position_ids where the graph needs
    it, past_key_values.N.key and .value. Outputs: logits of every position, present.N.key and
    .value; `static_cache` says what `static` has in place of mask, past and present. An encoder
    keeps its inputs and outputs. Shorter texts of a batch are padded on the left in the standard
    flavour, on the right in the others, whose attention counts tokens. opset: whose forms the
    operators get, where it is later than they need.

    Raises:
        UnsupportedError: an operator or encoding has no form in ONNX.
    """
    source = model.graph
    require_dense(source)
    static = flavour == STATIC and bool(source.states)
    lowest = static_cache.OPSET if static else OPSET
    builder = OnnxBuilder(source.name, max(lowest, opset or 0))
    positions = int(model.config.get("max_position_embeddings") or DEFAULT_POSITIONS)
    lowering = Lowering(source, builder, flavour == ORT, positions, static)
    for value in source.inputs:
        if value.name in (IDS, MASK, "token_type_ids"):
            made = builder.graph.add_input(value.name, value.dtype or "int64", dims(value) or ())
            lowering.put(value, made)
            if value.name == MASK:
                builder.once(MASK, lambda made=made: made)
    if source.states and not static:
        attention_mask(lowering)
    lowering.run()
    graph = builder.graph
    for value in source.outputs:
        graph.outputs.append(lowering.required(value))
        graph.outputs[-1].name = value.name
    graph.outputs += lowering.cache.present
    dead_code.apply(graph)
    graph.inputs = [v for v in graph.inputs if v.uses or v.name in (IDS, MASK)]
    order = {name: index for index, name in enumerate(FIRST_INPUTS)}
    graph.inputs.sort(key=lambda value: order.get(value.name, len(order)))
    by_id = {id(tensor): name for name, tensor in model.weights.items()}
    holdings = {by_id[key]: held for key, held in builder.holdings.items() if key in by_id}
    return Export(graph, holdings)
