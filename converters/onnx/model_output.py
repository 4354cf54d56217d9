"""A model without states as one ONNX file: its graph in the operators of one opset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from halfbyte.converters.format import WriteOptions, WrittenTensor
from halfbyte.converters.onnx.lowering import lower_graph
from halfbyte.converters.onnx.lowering.dequantized import needed_opset
from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.converters.onnx.opset_choice import fitting_opset, upgrade_nodes
from halfbyte.converters.onnx.writer import write_graph
from halfbyte.ir.graph import Graph
from halfbyte.ir.model import Model
from halfbyte.ir.ops.inference import infer_types


def write_model(model: Model, path: Path, options: WriteOptions) -> list[WrittenTensor]:
    """Write the graph of a model; return one entry for each weight that is in it.

    Raises:
        UnsupportedError: no ONNX operators say what a node does, or no opset has them all.
    """
    lowered, sources = lowered_graph(model.graph, options.flavour, options.opset)
    kept = dict(model.metadata.get("onnx", {}))
    written = write_graph(
        lowered,
        path,
        metadata=dict(kept.get("metadata_props", {})),
        doc=str(kept.get("doc_string", "")),
        opset=options.opset,
        threads=options.threads,
        progress=options.progress,
    )
    return _by_weight(model, written, sources)


def lowered_graph(
    graph: Graph, flavour: str = "", opset: int | None = None
) -> tuple[Graph, dict[str, str]]:
    """Return a copy in standard operators, and the weight that each new constant was made from.

    opset: what to say everything in; without one, the lowest that the graph's own operators and
    the types of its weights take.

    Raises:
        UnsupportedError: it cannot be said.
    """
    graph = graph.copy()
    infer_types(graph)
    target = _target(graph, opset)
    rewriter = Rewriter(graph, target, flavour)
    lower_graph(rewriter)
    return graph, rewriter.finish()


def _target(graph: Graph, opset: int | None) -> int:
    if opset is not None:
        upgrade_nodes(graph, opset)
        return opset
    lowest = fitting_opset(graph)
    return max([lowest, *(needed_opset(tensor) for tensor in graph.constants.values())])


def _by_weight(
    model: Model, written: Iterable[WrittenTensor], sources: dict[str, str]
) -> list[WrittenTensor]:
    """Return the constants grouped by the weight that they hold, in the order of the file."""
    found: dict[str, WrittenTensor] = {}
    for entry in written:
        source = sources.get(entry.name, entry.name)
        tensor = model.weights.get(source)
        if tensor is None:
            continue
        before = found.get(source)
        name = entry.name if before is None else before.name
        nbytes = entry.nbytes + (0 if before is None else before.nbytes)
        found[source] = WrittenTensor(source, name, str(tensor.encoding), nbytes)
    return list(found.values())
