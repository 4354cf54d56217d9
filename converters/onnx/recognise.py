"""Language models written by others, known by the structure of their graphs."""

from __future__ import annotations

from halfbyte.converters.onnx.messages import GraphMessage
from halfbyte.ir.model import Model


class NotRecognised(Exception):
    """Why a graph is not certain to be a known architecture."""


def looks_like_decoder(graph: GraphMessage) -> bool:
    """Whether inputs and outputs are those of a decoder with a cache."""
    inputs = {info.name for info in graph.input}
    outputs = {info.name for info in graph.output}
    past = any(name.startswith(("past_key_values.", "past.")) for name in inputs)
    return "input_ids" in inputs and "logits" in outputs and past


def recognise(model: Model, graph: GraphMessage) -> Model:
    """Return the language model that a graph is."""
    raise NotRecognised("not done yet")
