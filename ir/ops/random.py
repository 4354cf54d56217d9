"""Values drawn at random, the same ones in every run: a missing seed is 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.ir.dtypes import dtype_name, dtype_of, numpy_dtype
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.numerics import quiet
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    common_dtype,
    normal,
    required_input,
)

SEED = {"seed": Attribute("float")}
DTYPE = {"dtype": Attribute("dtype")}
Draw = Callable[[np.random.RandomState, Mapping[str, Any], tuple[int, ...]], Array]


def seeded(seed: float | None) -> np.random.RandomState:
    """Return the generator of a seed; its stream is the same in every version of numpy."""
    number = seed or 0
    whole = int(number) if float(number).is_integer() else np.float32(number).view(np.uint32)
    return np.random.RandomState(int(whole) & 0xFFFFFFFF)


def draw_normal(
    generator: np.random.RandomState, attributes: Mapping[str, Any], shape: tuple[int, ...]
) -> Array:
    """Return normal values of attributes `mean` and `scale`."""
    return np.asarray(generator.standard_normal(shape) * attributes["scale"] + attributes["mean"])


def draw_uniform(
    generator: np.random.RandomState, attributes: Mapping[str, Any], shape: tuple[int, ...]
) -> Array:
    """Return uniform values between attributes `low` and `high`."""
    low, high = attributes["low"], attributes["high"]
    return np.asarray(generator.random_sample(shape) * (high - low) + low)


def of_shape(draw: Draw) -> Callable[..., list[Array]]:
    """Return an evaluate of attribute `shape`."""

    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        to = numpy_dtype(dtype_name(attributes["dtype"]))
        return [draw(seeded(attributes["seed"]), attributes, tuple(attributes["shape"])).astype(to)]

    return evaluate


def like_input(draw: Draw) -> Callable[..., list[Array]]:
    """Return an evaluate of the input's shape."""

    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        data = np.asarray(inputs[0])
        to = numpy_dtype(dtype_name(attributes["dtype"] or dtype_of(data)))
        return [draw(seeded(attributes["seed"]), attributes, data.shape).astype(to)]

    return evaluate


@quiet
def evaluate_bernoulli(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return 1 with the probability that each element is."""
    data = np.asarray(inputs[0])
    to = numpy_dtype(dtype_name(attributes["dtype"] or dtype_of(data)))
    drawn = seeded(attributes["seed"]).random_sample(data.shape)
    return [np.asarray(drawn < data.astype(np.float64)).astype(to)]


@quiet
def evaluate_multinomial(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return classes drawn by their unnormalized log probabilities [batch, classes]."""
    data, count = np.asarray(inputs[0]).astype(np.float64), attributes["sample_size"]
    to = numpy_dtype(dtype_name(attributes["dtype"]))
    odds = np.cumsum(np.exp(data - data.max(axis=1, keepdims=True)), axis=1)
    drawn = seeded(attributes["seed"]).random_sample((len(data), count)) * odds[:, -1:]
    # rows lie one after another on one axis, so that one search finds all
    starts = np.concatenate([[0.0], np.cumsum(odds[:, -1])])[:-1, None]
    found = np.searchsorted((odds + starts).reshape(-1), (drawn + starts).reshape(-1), "right")
    classes = found.reshape(drawn.shape) - np.arange(len(data))[:, None] * data.shape[1]
    return [np.clip(classes, 0, data.shape[1] - 1).astype(to)]


def like_dtype(node: Node, index: int = 0) -> str | None:
    """Return attribute `dtype`, or that of an input."""
    asked = node.attributes.get("dtype")
    return dtype_name(asked) if asked else common_dtype(node, [index])


def infer_shape(node: Node) -> list[ValueType]:
    """Infer: attributes `dtype` and `shape`."""
    shape = tuple(int(n) for n in node.attributes.get("shape", ()))
    return [ValueType(dtype_name(node.attributes.get("dtype") or 1), shape)]


def infer_like(node: Node) -> list[ValueType]:
    """Infer: the input's shape, attribute `dtype` or the input's."""
    return [ValueType(like_dtype(node), required_input(node, 0).shape)]


def infer_multinomial(node: Node) -> list[ValueType]:
    """Infer: a row of samples for each row."""
    shape = required_input(node, 0).shape
    rows = UNKNOWN if shape is None else shape[0]
    to = dtype_name(node.attributes.get("dtype") or 6)
    return [ValueType(to, (rows, node.attributes.get("sample_size", 1)))]


def pair(op: str, draw: Draw, cases: dict[str, Any], **defaults: float) -> tuple[OpSpec, OpSpec]:
    """Return the operator that takes a shape and the one that takes an example."""
    numbers = {name: Attribute("float", value) for name, value in defaults.items()}
    shape = Attribute("ints", required=True)
    return (
        OpSpec(
            op,
            (1, 22),
            (),
            ("output",),
            infer=infer_shape,
            evaluate=of_shape(draw),
            attributes={**numbers, **SEED, "shape": shape, "dtype": Attribute("dtype", 1)},
            cases=lambda: [Case("matrix", [], {"shape": [3, 4], "seed": 2.0, **cases})],
        ),
        OpSpec(
            f"{op}Like",
            (1, 22),
            ("input",),
            ("output",),
            infer=infer_like,
            evaluate=like_input(draw),
            attributes=numbers | SEED | DTYPE,
            cases=lambda: [Case("like", [normal(154, 3, 4)], {"seed": 2.0, **cases})],
        ),
    )


SPECS: tuple[OpSpec, ...] = (
    *pair("RandomNormal", draw_normal, {"mean": 1.0}, mean=0.0, scale=1.0),
    *pair("RandomUniform", draw_uniform, {"high": 3.0}, low=0.0, high=1.0),
    OpSpec(
        "Bernoulli",
        (15, 22),
        ("input",),
        ("output",),
        infer=infer_like,
        evaluate=evaluate_bernoulli,
        attributes=SEED | DTYPE,
        cases=lambda: [Case("half", [np.full((3, 4), 0.5, np.float32)], {"seed": 1.0})],
    ),
    OpSpec(
        "Multinomial",
        (7, 22),
        ("input",),
        ("output",),
        infer=infer_multinomial,
        evaluate=evaluate_multinomial,
        attributes={**SEED, "sample_size": Attribute("int", 1), "dtype": Attribute("dtype", 6)},
        cases=lambda: [Case("rows", [normal(155, 3, 5)], {"sample_size": 7, "seed": 1.0})],
    ),
)
