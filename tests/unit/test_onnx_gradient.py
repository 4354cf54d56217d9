"""Gradient of ai.onnx.preview.training against differences."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

import halfbyte.onnx_backend as backend
from halfbyte.errors import UnsupportedError

TRAINING = "ai.onnx.preview.training"
A = np.float64([[0.7, 1.3, 2.1], [0.4, 0.9, 1.7]])
ROW = np.float64([1.1, 0.6, 1.9])
SQUARE = np.float64([[0.3, 1.2, 0.8], [1.4, 0.5, 0.2], [0.6, 0.9, 1.1]])


def model_of(nodes: list[onnx.NodeProto], inputs: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return a model that yields `y` and its derivatives by every input."""
    outs = [f"d{name}" for name in inputs]
    gradient = make_node("Gradient", list(inputs), outs, domain=TRAINING, xs=list(inputs), y="y")
    double = onnx.TensorProto.DOUBLE
    infos = [make_tensor_value_info(n, double, v.shape) for n, v in inputs.items()]
    results = [make_tensor_value_info(n, double, None) for n in ("y", *outs)]
    graph = make_graph([*nodes, gradient], "gradient", infos, results)
    return make_model(graph, opset_imports=[make_opsetid("", 18), make_opsetid(TRAINING, 1)])


CASES = {
    "chain": (
        [
            make_node("Exp", ["a"], ["e"]),
            make_node("Tanh", ["a"], ["t"]),
            make_node("Sub", ["e", "t"], ["s"]),
            make_node("Sigmoid", ["s"], ["g"]),
            make_node("Neg", ["g"], ["n"]),
            make_node("Log", ["a"], ["l"]),
            make_node("Sum", ["n", "l", "a"], ["y"]),
        ],
        {"a": A},
    ),
    "broadcast": (
        [
            make_node("Mul", ["a", "b"], ["m"]),
            make_node("Div", ["m", "a"], ["d"]),
            make_node("Div", ["d", "b"], ["c"]),
            make_node("Add", ["c", "m"], ["y"]),
        ],
        {"a": A, "b": ROW},
    ),
    "product": (
        [make_node("MatMul", ["a", "b"], ["m"]), make_node("Mul", ["m", "m"], ["y"])],
        {"a": A, "b": SQUARE},
    ),
    "independent": ([make_node("Identity", ["a"], ["y"])], {"a": A, "b": ROW}),
}


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_of_differences(name: str) -> None:
    nodes, inputs = CASES[name]
    prepared = backend.prepare(model_of(nodes, inputs))
    found = prepared.run(inputs)
    step = 1e-6
    for place, (key, value) in enumerate(inputs.items()):
        wanted = np.empty_like(value)
        for index in np.ndindex(value.shape):
            moved = [dict(inputs), dict(inputs)]
            for held, sign in zip(moved, (step, -step), strict=True):
                held[key] = value.copy()
                held[key][index] += sign
            above, below = (prepared.run(held)[0].sum() for held in moved)
            wanted[index] = (above - below) / (2 * step)
        assert found[1 + place].shape == value.shape
        np.testing.assert_allclose(found[1 + place], wanted, rtol=1e-6, atol=1e-8)


def test_operator_without_a_rule_is_named() -> None:
    model = model_of([make_node("Erf", ["a"], ["y"])], {"a": A})
    with pytest.raises(UnsupportedError, match="the gradient of Erf -> 'y'"):
        backend.prepare(model)
    assert not backend.is_compatible(model)


def test_gradient_by_something_else_is_refused() -> None:
    model = model_of([make_node("Exp", ["a"], ["y"])], {"a": A})
    del model.graph.node[1].attribute[:]
    model.graph.node[1].attribute.extend(
        [onnx.helper.make_attribute("xs", ["b"]), onnx.helper.make_attribute("y", "y")]
    )
    with pytest.raises(UnsupportedError, match="not the values that 'xs' and 'y' name"):
        backend.prepare(model)
