"""Language models among ONNX files: those that carry themselves, and those known by structure."""

from __future__ import annotations

from dataclasses import replace

from halfbyte.converters.onnx.language.pattern import NotRecognisedError
from halfbyte.converters.onnx.language.unknown import missing_parts
from halfbyte.converters.onnx.messages import ModelMessage
from halfbyte.converters.onnx.metadata import carries_model, restore
from halfbyte.converters.onnx.protobuf import Buffer
from halfbyte.converters.onnx.recognise import looks_like_decoder, recognise
from halfbyte.converters.onnx.tensors import TensorReader
from halfbyte.errors import HalfbyteError
from halfbyte.ir.model import Model, Provenance
from halfbyte.ir.tensor import Tensor

REASON = "language model of unknown structure"


def language_model(buffer: Buffer, message: ModelMessage) -> Model | str:
    """Return the language model in a parsed file, or why it is read as a plain graph.

    The reason is empty for files that are no language models.

    Raises:
        FormatError: the file carries a model of ours, and its parts do not fit each other.
    """
    graph = message.graph
    if graph is None:
        return ""
    props = {pair.key: pair.value for pair in message.metadata_props}
    if carries_model(props):
        return restore(_stored(buffer, message), props)
    lacking = missing_parts(buffer, graph)
    if lacking:
        return _told(lacking)
    if not looks_like_decoder(graph):
        return ""
    try:
        return recognise(_stored(buffer, message), graph)
    except (NotRecognisedError, HalfbyteError) as error:
        return _told(str(error))


def _told(reason: str) -> str:
    return f"{REASON}: {reason}; it runs as a graph, but cannot become a checkpoint"


def _stored(buffer: Buffer, message: ModelMessage) -> Model:
    """Return a model of nothing but the initializers, by name."""
    reader = TensorReader(buffer)
    weights: dict[str, Tensor] = {}
    assert message.graph is not None
    for tensor in message.graph.initializer:
        weights[tensor.name] = reader.tensor(tensor)
    return Model(weights, provenance=Provenance("onnx", str(buffer.path)))


def with_reason(model: Model, reason: str) -> Model:
    """Return a plain model with the reason why it is no language model, if there is one."""
    return replace(model, warnings=(*model.warnings, reason)) if reason else model
