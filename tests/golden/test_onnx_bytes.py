"""A whole small file, byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import halfbyte
from halfbyte.converters.onnx.writer import write_graph
from halfbyte.ir.graph import Graph
from halfbyte.ir.tensor import tensor_from_array


def text(field: str, value: str) -> bytes:
    raw = value.encode()
    return bytes.fromhex(field) + bytes([len(raw)]) + raw


HEAD = (
    bytes.fromhex("08 06")  # ir_version 6
    + text("12", "halfbyte")
    + text("1a", halfbyte.__version__)
    + bytes.fromhex("42 04 0a 00 10 0b")  # opset_import "" 11
    + bytes.fromhex("72 06 0a 01 6b 12 01 76")  # metadata_props k: v
)
GRAPH = bytes.fromhex(
    # node: inputs x w, output y, name y, MatMul
    "0a 14 0a 01 78 0a 01 77 12 01 79 1a 01 79 22 06 4d 61 74 4d 75 6c"
    # name g; input x float [n, 2]; output y float [n, 1]
    "12 01 67"
    "5a 14 0a 01 78 12 0f 0a 0d 08 01 12 09 0a 03 12 01 6e 0a 02 08 02"
    "62 14 0a 01 79 12 0f 0a 0d 08 01 12 09 0a 03 12 01 6e 0a 02 08 01"
    # initializer: dims 2 1, float, name w, raw data 1.5 -2
    "2a 13 08 02 08 01 10 01 42 01 77 4a 08 00 00 c0 3f 00 00 00 c0"
)  # fmt: skip


def test_written_bytes(tmp_path: Path) -> None:
    graph = Graph("g")
    x = graph.add_input("x", "float32", ("n", 2))
    weight = tensor_from_array("w", np.asarray([[1.5], [-2]], np.float32))
    inputs = [x, graph.add_constant(weight, fixed=True)]
    y = graph.add("MatMul", inputs, name="y", dtype="float32", shape=("n", 1), since_version=13)
    graph.outputs = [y]
    write_graph(graph, tmp_path / "g.onnx", metadata={"k": "v"})
    whole = HEAD + bytes([0x3A, len(GRAPH)]) + GRAPH
    assert (tmp_path / "g.onnx").read_bytes() == whole


def test_the_same_graph_gives_the_same_file(tmp_path: Path) -> None:
    files = []
    for threads in (1, 3):
        graph = Graph("g")
        x = graph.add_input("x", "float32", ("n", 700))
        weight = np.random.default_rng(2).standard_normal((90, 700)).astype(np.float32)
        value = graph.add_constant(tensor_from_array("w", weight.T.copy()), fixed=True)
        y = graph.add("MatMul", [x, value], name="y", dtype="float32", since_version=13)
        graph.outputs = [y]
        path = tmp_path / f"{threads}.onnx"
        write_graph(graph, path, threads=threads)
        files.append(path.read_bytes())
    assert files[0] == files[1]
