"""A model as an ONNX file: language models by their own exporter, others as their graph stands."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from halfbyte.converters.format import WriteOptions, WrittenTensor
from halfbyte.converters.onnx.dynamic_integers import require_integers
from halfbyte.converters.onnx.lowering import lower_graph
from halfbyte.converters.onnx.lowering.cached_attention import ATTENTION_OPSET
from halfbyte.converters.onnx.lowering.target import target_opset
from halfbyte.converters.onnx.opset_choice import every_graph
from halfbyte.converters.onnx.profile import STATIC, profile
from halfbyte.converters.onnx.writer import write_graph
from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import Graph
from halfbyte.ir.model import CALIBRATION_KEY, Model
from halfbyte.ir.ops.inference import infer_types


def write_onnx(model: Model, path: Path, options: WriteOptions) -> list[WrittenTensor]:
    """Write a model; return one entry for each weight that is in the file.

    Raises:
        UnsupportedError: no ONNX operators say what a node does, or no opset has them all.
    """
    from halfbyte.converters.onnx.language_model import is_language_model, write_language_model

    profile(options.flavour)
    # The exporter of language models says attention as one operator; before it existed, an encoder
    # can be said by its parts.
    _require_cache(model, options.flavour)
    apart = options.opset is not None and options.opset < ATTENTION_OPSET
    try:
        if is_language_model(model) and not (apart and not model.graph.states):
            return write_language_model(model, path, options)
        return write_model(model, path, options)
    except UnicodeEncodeError as error:
        what = f"text that is not UTF-8 ({error.object!r})"
        raise UnsupportedError(what, str(path), advice="rename it in the source") from None


def _require_cache(model: Model, flavour: str) -> None:
    """Raise UnsupportedError where a cache of fixed length is asked for and there is none."""
    if flavour == STATIC and not model.graph.states:
        raise UnsupportedError(
            f"flavour {flavour!r} of a model without a cache of keys and values",
            model.graph.name,
            ["onnx", "onnx:ort"],
        )


def write_model(model: Model, path: Path, options: WriteOptions) -> list[WrittenTensor]:
    """Write the graph of a model as it stands, in the operators of one opset.

    Raises:
        UnsupportedError: it cannot be said.
    """
    lowered, sources = lowered_graph(model.graph, options.flavour, options.opset)
    if options.activations:
        require_integers(lowered, path)
    kept = _kept(model)
    facts = {str(k): str(v) for k, v in dict(kept.get("metadata_props") or {}).items()}
    if CALIBRATION_KEY in model.metadata:
        facts[CALIBRATION_KEY] = json.dumps(model.metadata[CALIBRATION_KEY], sort_keys=True)
    written = write_graph(
        lowered,
        path,
        metadata=facts,
        doc=str(kept.get("doc_string") or ""),
        opset=options.opset,
        threads=options.threads,
        progress=options.progress,
    )
    return _by_weight(model, written, sources)


def _kept(model: Model) -> dict[str, Any]:
    """Return what the model brought along from an ONNX file."""
    found = model.metadata.get("onnx")
    return dict(found) if isinstance(found, dict) else {}


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
    for part in every_graph(graph):
        _release_encoded(part)
        infer_types(part)
    sources = lower_graph(graph, target_opset(graph, opset), flavour)
    for part in every_graph(graph):
        _drop_unused(part)
    return graph, sources


def _drop_unused(graph: Graph) -> None:
    for name in list(graph.constants):
        value = graph.constant_value(name)
        if not value.uses and value not in graph.outputs:
            graph.remove_constant(name)


def _release_encoded(graph: Graph) -> None:
    """Let constants that were encoded since they were read be read in their readers' dtype."""
    for name, tensor in graph.constants.items():
        value = graph.constant_value(name)
        dtype = getattr(tensor.encoding, "dtype_name", "float32")
        if tensor.encoding.is_quantized or dtype != value.dtype:
            value.fixed, value.dtype = False, dtype


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
