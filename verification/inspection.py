"""What a model is: format, architecture, tensors, encodings, metadata, problems."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from halfbyte.errors import HalfbyteError
from halfbyte.ir.graph import Value
from halfbyte.ir.legality import check
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import Tensor

VALUE_CHARACTERS = 100
# Entries of the ONNX metadata that have a place of their own in the description.
OWN_PLACE = frozenset({"opset_import", "inputs", "outputs", "operators"})


@dataclass(frozen=True)
class Inspection:
    """The description of a model; `problems` are sentences, empty for a sound model."""

    source: str
    format: str
    architecture: str
    parameters: int
    bytes: int
    bits_per_weight: float
    tokenizer: str
    tensors: list[dict[str, Any]]
    problems: list[str]
    config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return dict(vars(self))


def _bits(tensor: Tensor) -> float:
    return 8 * tensor.nbytes / tensor.size if tensor.size else 0.0


def _describe_tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "encoding": str(tensor.encoding),
        "bits_per_weight": round(_bits(tensor), 4),
        "bytes": tensor.nbytes,
        "role": "" if tensor.key is None else str(tensor.key),
    }


def _describe_tokenizer(model: Model) -> str:
    tokenizer = model.tokenizer
    if tokenizer is None:
        return ""
    template = ", chat template" if tokenizer.chat_template else ""
    return f"{tokenizer.kind}, {len(tokenizer.tokens):,} tokens{template}"


def shorten(value: Any) -> str:
    """Return a value as one line of at most about 100 printable characters."""
    if isinstance(value, np.ndarray | list | tuple) and len(value) > 8:
        first = ", ".join(str(item) for item in value[:4])
        return f"[{first}, ...] ({len(value):,} entries)"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    text = " ".join(str(value).split())
    # A file's text may hold escape sequences that a terminal would obey.
    text = "".join(c if c.isprintable() else "\ufffd" for c in text[: VALUE_CHARACTERS + 1])
    return text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 4] + " ..."


def _metadata(model: Model) -> dict[str, str]:
    """Return GGUF keys and file names as they are, entries of other groups behind the group."""
    found: dict[str, str] = {}
    for group, entries in model.metadata.items():
        if isinstance(entries, dict):
            for name, entry in entries.items():
                if group == "onnx" and (name in OWN_PLACE or entry in ("", {})):
                    continue
                label = name if group in ("gguf", "files") else f"{group}.{name}"
                found[str(label)] = shorten(getattr(entry, "value", entry))
        else:
            found[str(group)] = shorten(entries)
    return found


def _non_finite(tensor: Tensor) -> int:
    count = 0
    for start, stop in tensor.row_ranges():
        values = np.asarray(tensor.decode(start, stop))
        if values.dtype.kind == "c":
            count += int((~np.isfinite(values)).sum())
        elif values.dtype.kind not in "iubO":
            count += int((~np.isfinite(values.astype(np.float32, copy=False))).sum())
    return count


def weight_problems(model: Model) -> list[str]:
    """Return a sentence for each weight that holds NaN or an infinity; reads every weight."""
    found = []
    for tensor in model.weights.values():
        count = _non_finite(tensor)
        if count:
            found.append(f"tensor {tensor.name!r} has {count:,} values that are not finite")
    return found


@dataclass(frozen=True)
class _GraphFacts:
    """What a graph takes, gives and is made of; where it cannot be had, what the file says."""

    operators: dict[str, int]
    opsets: dict[str, int]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    problems: list[str]


def _describe_value(value: Value) -> dict[str, Any]:
    shape = None if value.shape is None else list(value.shape)
    return {"name": value.name, "dtype": value.dtype or "", "shape": shape}


def _graph_facts(model: Model) -> _GraphFacts:
    """Return the facts of a model's graph; an ONNX file's own operators, before any rewriting."""
    said = model.metadata.get("onnx", {})
    operators, opsets = said.get("operators", {}), said.get("opset_import", {})
    inputs, outputs = said.get("inputs", []), said.get("outputs", [])
    if model.build is None:
        problem = f"architecture {model.architecture or 'unknown'!r} cannot be run"
        return _GraphFacts(operators, opsets, inputs, outputs, [problem])
    try:
        graph = model.graph
        check(graph)
    except HalfbyteError as error:
        return _GraphFacts(operators, opsets, inputs, outputs, [str(error)])
    if model.stored_graph is not None:
        return _GraphFacts(operators, opsets, inputs, outputs, [])
    names = Counter(f"{n.domain}.{n.op}" if n.domain else n.op for n in graph.nodes)
    return _GraphFacts(
        operators or dict(sorted(names.items())),
        opsets,
        [_describe_value(value) for value in graph.inputs],
        [_describe_value(value) for value in graph.outputs],
        [],
    )


def _vocabulary_problems(model: Model) -> list[str]:
    rows = model.config.get("vocab_size")
    if model.tokenizer is None or not isinstance(rows, int):
        return []
    tokens = len(model.tokenizer.tokens)
    if tokens > rows:
        return [f"the tokenizer has {tokens:,} tokens, the embedding {rows:,} rows"]
    return []


def describe(model: Model, source: str, *, read_weights: bool = False) -> Inspection:
    """Return the description of a model; `read_weights` also looks at every value."""
    size = sum(tensor.nbytes for tensor in model.weights.values())
    facts = _graph_facts(model)
    problems = [*facts.problems, *_vocabulary_problems(model), *model.warnings]
    if read_weights:
        problems += weight_problems(model)
    return Inspection(
        source,
        model.provenance.format,
        model.architecture,
        model.parameters,
        size,
        8 * size / model.parameters if model.parameters else 0.0,
        _describe_tokenizer(model),
        [_describe_tensor(tensor) for tensor in model.weights.values()],
        problems,
        dict(model.config),
        _metadata(model),
        facts.operators,
        facts.opsets,
        facts.inputs,
        facts.outputs,
    )


def encoding_summary(inspection: Inspection) -> list[tuple[str, int, int]]:
    """Return (encoding, tensors, bytes) in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for tensor in inspection.tensors:
        entry = groups.setdefault(tensor["encoding"], [0, 0])
        entry[0] += 1
        entry[1] += tensor["bytes"]
    return [(name, count, size) for name, (count, size) in groups.items()]
