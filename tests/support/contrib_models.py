"""One operator of onnxruntime's domain as a model for onnxruntime and as a graph for us."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.converters.onnx.contrib import DOMAIN, lower_all
from halfbyte.ir.dtypes import ONNX_NUMBERS, dtype_of
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.legality import check
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.runtime.session import Session

Array = np.ndarray
Given = Sequence[Array | None]


def graph_of(
    op: str,
    inputs: Given,
    attributes: Mapping[str, Any],
    outputs: int,
    constants: Collection[int] = (),
    domain: str = DOMAIN,
    symbolic: bool = False,
) -> Graph:
    """Return a graph of one node; inputs named in `constants` are stored, the others fed."""
    graph = Graph()
    values: list[Value | None] = []
    for index, array in enumerate(inputs):
        if array is None:
            values.append(None)
        elif index in constants:
            tensor = tensor_from_array(f"i{index}", array)
            values.append(graph.add_constant(tensor, fixed=True))
        else:
            names = tuple(f"d{index}_{axis}" for axis in range(array.ndim))
            shape = names if symbolic else array.shape
            values.append(graph.add_input(f"i{index}", dtype_of(array), shape))
    results = [Value(f"o{index}") for index in range(outputs)]
    graph.insert(Node(op, values, results, dict(attributes), domain))
    graph.outputs = list(results)
    return graph


def ours(graph: Graph, inputs: Given, fuse: bool = True) -> list[Array]:
    """Return what our runtime computes for the lowered graph."""
    lower_all(graph)
    check(graph)
    held = {value.name for value in graph.inputs}
    feeds = {f"i{i}": a for i, a in enumerate(inputs) if a is not None and f"i{i}" in held}
    found = Session(graph, fuse=fuse).run(feeds)
    return [found[value.name] for value in graph.outputs]


def theirs(
    op: str,
    inputs: Given,
    attributes: Mapping[str, Any],
    outputs: int,
    constants: Collection[int] = (),
    domain: str = DOMAIN,
    opset: int = 21,
) -> list[Array]:
    """Return what onnxruntime computes for the node alone."""
    import onnx
    import onnxruntime
    from onnx import helper

    names = ["" if array is None else f"i{i}" for i, array in enumerate(inputs)]
    node = helper.make_node(
        op, names, [f"o{i}" for i in range(outputs)], domain=domain, **attributes
    )
    fed, stored, feeds = [], [], {}
    for index, array in enumerate(inputs):
        if array is None:
            continue
        number, name = ONNX_NUMBERS[dtype_of(array)], f"i{index}"
        if index in constants:
            stored.append(_tensor(name, number, array))
        else:
            fed.append(helper.make_tensor_value_info(name, number, array.shape))
            feeds[name] = array
    results = [onnx.ValueInfoProto(name=f"o{i}") for i in range(outputs)]
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    graph = helper.make_graph([node], "one", fed, results, stored)
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def _tensor(name: str, number: int, array: Array) -> Any:
    from onnx import helper, numpy_helper

    if dtype_of(array) in ("int4", "uint4", "int2", "uint2"):
        flat = array.reshape(-1).astype(np.int32).tolist()
        return helper.make_tensor(name, number, array.shape, flat)
    return numpy_helper.from_array(array, name)


def compare(
    op: str,
    inputs: Given,
    attributes: Mapping[str, Any] | None = None,
    *,
    outputs: int = 1,
    constants: Collection[int] = (),
    tolerance: float = 1e-6,
    steps: int = 0,
    domain: str = DOMAIN,
    opset: int = 21,
    shapes: Sequence[bool] = (False, True),
    judged: int | None = None,
) -> None:
    """Assert that both give the same; shapes: whether symbolic, for each run of ours.

    judged: how many of the outputs are compared.

    tolerance: |difference| / max |reference| for floats; steps: for integers.
    """
    given = dict(attributes or {})
    wanted = theirs(op, inputs, given, outputs, constants, domain, opset)
    for symbolic in shapes:
        graph = graph_of(op, inputs, given, outputs, constants, domain, symbolic)
        for found, truth in list(zip(ours(graph, inputs), wanted, strict=True))[:judged]:
            assert found.dtype == truth.dtype, (found.dtype, truth.dtype)
            assert found.shape == truth.shape, (found.shape, truth.shape)
            wide = found.astype(np.float64), truth.astype(np.float64)
            error = np.abs(wide[0] - wide[1]).max(initial=0.0)
            if truth.dtype.kind in "iub":
                assert error <= steps, error
            else:
                assert error <= tolerance * np.abs(wide[1]).max(initial=1e-30), error
