"""Writing a language model as ONNX: graph, weights, what carries the model back, and companions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from halfbyte.converters.format import StoredGrid, WriteOptions, WrittenTensor
from halfbyte.converters.onnx import metadata
from halfbyte.converters.onnx.dynamic_integers import require_integers
from halfbyte.converters.onnx.genai import genai_files
from halfbyte.converters.onnx.language.export import Export, export_graph
from halfbyte.converters.onnx.language.naming import name_nodes
from halfbyte.converters.onnx.language.weight_form import verdict_of
from halfbyte.converters.onnx.nbits import CODES
from halfbyte.converters.onnx.profile import ORT
from halfbyte.converters.onnx.static_integers import require_static_integers
from halfbyte.converters.onnx.writer import write_graph
from halfbyte.errors import HalfbyteError
from halfbyte.files import atomic_folder
from halfbyte.ir.model import Model

FILE_NAME = "model.onnx"
OWN_COMPANIONS = frozenset({"genai_config.json"})


def is_language_model(model: Model) -> bool:
    """Whether a model has an architecture's config and weights with roles, as those here need."""
    from halfbyte.converters.architectures import ARCHITECTURES

    return model.architecture in ARCHITECTURES and bool(model.by_key()) and model.build is not None


def write_language_model(model: Model, path: Path, options: WriteOptions) -> list[WrittenTensor]:
    """Write a language model as `path` and `path.data`; return one entry for each weight.

    A path without an ending is a folder, which gets `model.onnx`. The flavour `ort` adds
    genai_config.json and the tokenizer's files in the same folder.

    Raises:
        UnsupportedError: a weight or operator has no form in ONNX.
        HalfbyteError: a companion would replace another file of the same name.
    """
    if path.suffix:
        return _write(model, path, options)
    with atomic_folder(path) as folder:
        return _write(model, folder / FILE_NAME, options)


def _write(model: Model, path: Path, options: WriteOptions) -> list[WrittenTensor]:
    export = export_graph(model, options.flavour, options.opset)
    if options.grids:
        require_static_integers(export.graph, _by_codes(export, options.grids), path)
    elif options.activations:
        require_integers(export.graph, path)
    name_nodes(export.graph)
    companions: dict[str, bytes] = {}
    if options.flavour == ORT and model.graph.states:
        companions = genai_files(model, export.graph, path.name)
        _require_free(path, companions)
    written = write_graph(
        export.graph,
        path,
        metadata=metadata.properties(model, export.holdings),
        external=True,
        companions=companions,
        opset=options.opset,
        threads=options.threads,
        progress=options.progress,
    )
    return _by_weight(model, export, written)


def _by_codes(export: Export, grids: Mapping[str, StoredGrid]) -> dict[str, StoredGrid]:
    """Return grids by the names of the constants that hold the weights' codes."""
    return {
        export.holdings[name].constants[CODES]: grid
        for name, grid in grids.items()
        if name in export.holdings and CODES in export.holdings[name].constants
    }


def _require_free(path: Path, companions: dict[str, bytes]) -> None:
    for name, content in companions.items():
        there = path.with_name(name)
        if name in OWN_COMPANIONS or not there.is_file():
            continue
        if there.stat().st_size != len(content) or there.read_bytes() != content:
            raise HalfbyteError(
                f"{there}: is another file of that name, which the tokenizer's would replace; "
                "write into a folder of its own"
            )


def _by_weight(model: Model, export: Export, written: list[WrittenTensor]) -> list[WrittenTensor]:
    """Return the weights in the model's order with the bytes of the constants that hold them."""
    nbytes = {entry.name: entry.nbytes for entry in written}
    found = []
    for name, tensor in model.weights.items():
        held = export.holdings.get(name)
        names = [] if held is None else list(held.constants.values())
        total = sum(nbytes.get(constant, 0) for constant in names)
        shown = names[0] if names else name
        verdict = str(verdict_of(tensor.encoding, tensor.columns))
        found.append(WrittenTensor(name, shown, str(tensor.encoding), total, verdict))
    return found
