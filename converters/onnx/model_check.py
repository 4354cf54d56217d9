"""ONNX's own checker over what is about to be written, before any weight is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halfbyte.errors import GraphError

FULL_CHECK_BYTES = 64 << 20


def _skeleton(model: Any, graph: Any, small: Sequence[Any], inputs: Sequence[Any]) -> Any:
    """Return the model with its streamed constants as inputs."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.CopyFrom(graph)
    result.graph.initializer.extend(small)
    result.graph.input.extend(inputs)
    return result


def _without_unranked(skeleton: Any) -> Any:
    """Drop outputs of unknown rank, which the checker refuses although runtimes take them."""
    declared = [output for output in skeleton.graph.output if is_declared(output)]
    if len(declared) < len(skeleton.graph.output):
        del skeleton.graph.output[:]
        skeleton.graph.output.extend(declared)
    return skeleton


def check_written(model: Any, graph: Any, small: Sequence[Any], inputs: Sequence[Any]) -> None:
    """Run onnx.checker, with shape inference where the graph is not huge.

    Raises:
        GraphError: what the checker says.
    """
    import onnx

    skeleton = _without_unranked(_skeleton(model, graph, small, inputs))
    try:
        onnx.checker.check_model(skeleton)
    except onnx.checker.ValidationError as error:
        raise _refusal(graph, error) from error
    if skeleton.ByteSize() > FULL_CHECK_BYTES:
        return
    try:
        _infer(skeleton)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        # A shape that ONNX infers wrongly is no reason; the types must agree without shapes.
        _forget_shapes(skeleton.graph)
        try:
            _infer(skeleton)
        except (onnx.shape_inference.InferenceError, RuntimeError) as error:
            raise _refusal(graph, error) from error


def _forget_shapes(graph: Any) -> None:
    for value in (*graph.value_info, *graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _forget_shapes(inner)


def _infer(skeleton: Any) -> None:
    import onnx

    onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True)


def _refusal(graph: Any, error: Exception) -> GraphError:
    said = " ".join(str(error).split())
    return GraphError(graph.name, f"is refused by onnx.checker: {said}")


def fill_output_types(model: Any, graph: Any, small: Sequence[Any], inputs: Sequence[Any]) -> None:
    """Give graph outputs without a type or rank those that ONNX infers; a file declares them."""
    import onnx

    if all(is_declared(output) for output in graph.output):
        return
    skeleton = _skeleton(model, graph, small, inputs)
    inferred = onnx.shape_inference.infer_shapes(skeleton).graph
    known = {value.name: value for value in (*inferred.value_info, *inferred.output)}
    for output in graph.output:
        found = known.get(output.name)
        if not is_declared(output) and found is not None and found.type.WhichOneof("value"):
            output.type.CopyFrom(found.type)


def is_declared(value: Any) -> bool:
    """Whether a ValueInfoProto has what onnx.checker asks of inputs and outputs: type and rank."""
    kind = value.type.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or value.type.tensor_type.HasField("shape"))
