"""Models of the ONNX backend suite, read, written and read again: the graph stays what it is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.backend.test.loader import load_model_tests

from halfbyte.converters import get_format
from halfbyte.converters.format import ReadOptions, WriteOptions
from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.ops import spec_of
from halfbyte.ir.tensor import Tensor

STEP = 4  # every model takes three times as long as to run it
FLOOR = 440
# The model declares an optional where its loop gives a sequence; onnx's strict inference says so.
REFUSED = {"test_loop16_seq_none"}
ONNX = get_format("onnx")


def described(value: Any) -> Any:
    """Return something that can be compared: the text of a graph, the values of an array."""
    if isinstance(value, Graph):
        return outline(value)
    if isinstance(value, Tensor):
        return described(value.numpy())
    if isinstance(value, np.ndarray):
        kept = value.tolist() if value.dtype.kind == "O" else value.tobytes()
        return value.dtype.name, value.shape, kept
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    return value


def read_from(value: Value | None) -> Any:
    if value is None or value.constant is None:
        return None if value is None else value.name
    return described(value.constant)


def outline(graph: Graph) -> list[Any]:
    """Return what a graph computes, whatever the names of its constants."""
    lines: list[Any] = [[(v.name, v.dtype, v.shape) for v in graph.inputs]]
    for node in graph.nodes:
        spec = spec_of(node)
        attributes = spec.with_defaults(node.attributes)
        held = {name: described(value) for name, value in attributes.items()}
        inputs = [read_from(value) for value in node.inputs]
        outputs = [value.name for value in node.outputs]
        lines.append((spec.key, spec.versions, held, inputs, outputs))
    return [*lines, [v.name for v in graph.outputs]]


def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(load_model_tests(kind="node"))[::STEP]


def test_a_model_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    same, other = 0, []
    for case in cases():
        first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
        onnx.save(case.model, first)
        source = ONNX.read(first, ReadOptions())
        try:
            graph = source.graph
        except UnsupportedError:
            continue
        if case.name in REFUSED:
            continue
        ONNX.write(source, second, WriteOptions())
        if outline(graph) == outline(ONNX.read(second, ReadOptions()).graph):
            same += 1
        else:
            other.append(case.name)
    assert not other
    assert same >= FLOOR


def test_what_the_checker_refuses_is_not_written(tmp_path: Path) -> None:
    found = [case for case in load_model_tests(kind="node") if case.name in REFUSED]
    onnx.save(found[0].model, tmp_path / "first.onnx")
    source = ONNX.read(tmp_path / "first.onnx", ReadOptions())
    with pytest.raises(Exception, match=r"refused by onnx\.checker"):
        ONNX.write(source, tmp_path / "second.onnx", WriteOptions())
    assert not (tmp_path / "second.onnx").exists()
