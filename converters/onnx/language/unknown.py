"""Language models that no pattern fits: what they have, and what is missing to know them."""

from __future__ import annotations

from halfbyte.converters.onnx.messages import GraphMessage, NodeMessage
from halfbyte.converters.onnx.protobuf import Buffer
from halfbyte.converters.onnx.types import read_type
from halfbyte.errors import HalfbyteError

IDS, LOGITS = "input_ids", "logits"
# Views and casts between a table of embeddings and the lookup that reads it.
PASSING = ("Identity", "Cast", "Transpose", "Reshape")
LOOKUPS = ("Gather", "GatherBlockQuantized")
ATTENTION = "GroupQueryAttention"


def missing_parts(buffer: Buffer, graph: GraphMessage) -> str:
    """Return why a graph from token ids to logits is none that can be recognised.

    Empty for graphs of another kind, and for those that a pattern may fit.
    """
    output = logits(buffer, graph)
    if not output:
        return ""
    past = [
        info.name for info in graph.input if info.name.startswith(("past_key_values.", "past."))
    ]
    missing = [] if past else ["inputs past_key_values.N.key"]
    if output != LOGITS:
        missing.append(f"the name {LOGITS!r} for output {output!r}")
    if not any(node.op_type == ATTENTION for node in graph.node):
        missing.append(f"{ATTENTION} nodes")
    if not missing:
        return ""
    return (
        f"{IDS} give logits, but {_listed(missing)} are missing, which onnxruntime-genai's builder "
        "writes"
    )


def _listed(parts: list[str]) -> str:
    head = ", ".join(parts[:-1])
    return f"{head} and {parts[-1]}" if head else parts[-1]


def logits(buffer: Buffer, graph: GraphMessage) -> str:
    """Return the output that has a number for every row of the table that ids look up."""
    if IDS not in {info.name for info in graph.input}:
        return ""
    if LOGITS in {info.name for info in graph.output}:
        return LOGITS
    rows = _table_rows(graph)
    for info in graph.output:
        try:
            shape = read_type(buffer, info.type).shape
        except HalfbyteError:
            continue
        if shape is not None and len(shape) == 3 and shape[2] in rows:
            return info.name
    return ""


def _table_rows(graph: GraphMessage) -> set[int]:
    """Return the lengths of the tables in which token ids are looked up."""
    sources = {name: node for node in graph.node for name in node.output}
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found = set()
    for node in graph.node:
        if node.op_type not in LOOKUPS or len(node.input) < 2:
            continue
        ids, table = (_behind(sources, name) for name in (node.input[1], node.input[0]))
        if ids == IDS and len(dims.get(table, ())) >= 2:
            found.add(dims[table][0])
    return found


def _behind(sources: dict[str, NodeMessage], name: str) -> str:
    """Return the value behind views and casts; files may run in circles."""
    for _ in PASSING:
        node = sources.get(name)
        if node is None or node.op_type not in PASSING or not node.input:
            break
        name = node.input[0]
    return name
