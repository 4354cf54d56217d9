"""Numbered malformed ONNX files: only HalfbyteError, little memory, little time."""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters import detect
from halfbyte.converters.onnx.reader import read_model
from halfbyte.errors import FormatError, HalfbyteError
from halfbyte.runtime.session import Session
from halfbyte.verification.inspection import describe
from support.onnx_wire import (
    A_GRAPH,
    A_INT,
    A_INTS,
    A_TENSOR,
    FLOAT,
    INT64,
    STRING,
    attribute,
    blob,
    external,
    floats,
    function,
    graph,
    model,
    node,
    number,
    opset,
    pair,
    tensor,
    value,
    varint,
)

MEMORY_LIMIT = 8 << 20
SECONDS = 5.0
ADD = node("Add", ["x", "w"], ["y"])
ABS = node("Abs", ["x"], ["y"])


def bounded(action: Callable[[], Any]) -> Any:
    """Run an action within little memory and time."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        return action()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert time.perf_counter() - start < SECONDS
        assert peak < MEMORY_LIMIT, peak


def stored(*initializers: bytes) -> bytes:
    """Return a model that adds a stored tensor `w`."""
    return model(graph([ADD], initializers))


def with_nodes(*nodes: bytes) -> bytes:
    """Return a model of nodes."""
    return model(graph(nodes))


def nested_types(depth: int) -> bytes:
    kind = blob(1, number(1, FLOAT))
    for _ in range(depth):
        kind = blob(4, blob(1, kind))
    return blob(1, "x") + blob(2, kind)


def nested_branches(depth: int) -> bytes:
    inner = graph([ABS], inputs=())
    for _ in range(depth):
        held = [attribute(n, A_GRAPH, blob(6, inner)) for n in ("then_branch", "else_branch")[:1]]
        inner = graph([node("If", ["x"], ["y"], *held)], inputs=())
    return inner


def calls(*names: str) -> list[bytes]:
    return [node(name, ["x"], [f"v{i}"], domain="local") for i, name in enumerate(names)]


def bomb(levels: int) -> bytes:
    """Return functions that each call the next one twice."""
    made = []
    for level in range(levels):
        target = f"f{level + 1}"
        body = [
            node(target, ["a"], ["b"], domain="local"),
            node(target, ["b"], ["c"], domain="local"),
        ]
        made.append(blob(25, function(f"f{level}", ["a"], ["c"], body)))
    made.append(blob(25, function(f"f{levels}", ["a"], ["c"], [node("Abs", ["a"], ["c"])])))
    return model(graph([node("f0", ["x"], ["y"], domain="local")]), *made)


def sparse(dims: Sequence[int], places: Sequence[int], *, kind: int = INT64) -> bytes:
    values = tensor("w", [len(places)], floats(*[1.0] * len(places)))
    indices = tensor("i", [len(places)], np.array(places, np.int64).tobytes(), kind)
    entry = blob(1, values) + blob(2, indices) + b"".join(number(3, d) for d in dims)
    return model(graph([ADD], [], (value("x", None),), (value("y", None),), blob(15, entry)))


CASES: dict[str, tuple[bytes, str]] = {
    "01 empty file": (b"", "the file is empty"),
    "02 no graph": (number(1, 10), "has no graph"),
    "03 graph cut off": (model(graph([ABS]))[:20], "is cut off"),
    "04 length beyond the end": (blob(2, "p") + b"\x3a" + varint(2**62), "is cut off"),
    "05 length of 64 bits": (b"\x3a" + varint(2**64 - 1), "is cut off"),
    "06 number without end": (b"\x08" + b"\xff" * 20, "more than 10 bytes"),
    "07 group": (b"\x0b\x0c", "ModelMessage.ir_version has wire type 3"),
    "08 graph as a number": (number(7, 1), "ModelMessage.graph has wire type 0"),
    "09 two graphs": (model(graph([ABS])) + blob(7, graph([ABS])), "stands twice"),
    "10 field zero": (b"\x02\x00", "field number 0"),
    "11 nested types": (
        model(graph([ABS], [], (nested_types(200),))),
        "nest deeper than 100 levels",
    ),
    "12 nested branches": (model(nested_branches(200)), "nest deeper than 100 levels"),
    "13 negative dimension": (stored(tensor("w", [-1], b"")), "dimensions >= 0 were required"),
    "14 two negative dimensions": (stored(tensor("w", [-2, -2], bytes(16))), "dimensions >= 0"),
    "15 dimensions that overflow": (
        stored(tensor("w", [2**32, 2**32], b"")),
        "more values than a file can hold",
    ),
    "16 dimensions that wrap to 0": (stored(tensor("w", [2**62, 4], b"")), "more values than"),
    "17 huge and empty": (stored(tensor("w", [0, 2**62], b"")), "more values than a file"),
    "18 too many dimensions": (stored(tensor("w", [1] * 33, floats(1))), "33 dimensions"),
    "19 raw data too short": (stored(tensor("w", [2], bytes(7))), "7 raw bytes.*needs 8"),
    "20 raw data too long": (stored(tensor("w", [2], bytes(9))), "9 raw bytes.*needs 8"),
    "21 huge without data": (stored(tensor("w", [2**40])), "has 0 numbers in float_data"),
    "22 type 0": (stored(tensor("w", [2], bytes(8), 0)), "element type 0, known are 1 to 28"),
    "23 type 29": (stored(tensor("w", [2], bytes(8), 29)), "element type 29"),
    "24 type -1": (stored(tensor("w", [2], bytes(8), -1)), "element type -1"),
    "25 raw and typed data": (
        stored(tensor("w", [2], bytes(8), FLOAT, blob(4, floats(1, 2)))),
        "raw data and numbers",
    ),
    "26 wrong typed field": (
        stored(tensor("w", [2], None, FLOAT, blob(7, varint(1), varint(2)))),
        "float_data was required",
    ),
    "27 half a number": (
        stored(tensor("w", [2], None, FLOAT, blob(4, bytes(7)))),
        "no whole 4-byte numbers",
    ),
    "28 typed data too short": (
        stored(tensor("w", [3], None, INT64, blob(7, varint(1), varint(2)))),
        "has 2 numbers in int64_data, its shape needs 3",
    ),
    "29 packed number without end": (
        stored(tensor("w", [1], None, INT64, blob(7, b"\x80"))),
        "ends inside a number",
    ),
    "30 packed number of 70 bits": (
        stored(tensor("w", [1], None, INT64, blob(7, b"\xff" * 9 + b"\x7f"))),
        "more than 64 bits",
    ),
    "31 strings as raw data": (stored(tensor("w", [2], b"ab", STRING)), "string_data was required"),
    "32 strings missing": (
        stored(tensor("w", [2**40], None, STRING, blob(6, "a"))),
        "has 1 strings",
    ),
    "33 segment": (stored(tensor("w", [2], bytes(8), FLOAT, blob(3, b""))), "one segment"),
    "34 data location 2": (
        stored(tensor("w", [2], bytes(8), FLOAT, number(14, 2))),
        "data location 2",
    ),
    "35 initializer twice": (
        stored(tensor("w", [2], floats(1, 2)), tensor("w", [2], floats(1, 2))),
        "stands twice",
    ),
    "36 initializer without name": (stored(tensor("", [2], floats(1, 2))), "has no name"),
    "37 input twice": (model(graph([ABS], [], (value("x"), value("x")))), "stands twice"),
    "38 value assigned twice": (with_nodes(ABS, node("Neg", ["x"], ["y"])), "assigns 'y', which"),
    "39 node assigns an input": (
        with_nodes(ABS, node("Neg", ["y"], ["x"])),
        "assigns 'x', which is there already",
    ),
    "40 one node, one name twice": (with_nodes(node("Split", ["x"], ["y", "y"])), "assigns 'y'"),
    "41 undefined value": (with_nodes(node("Abs", ["z"], ["y"])), "'z', which nothing defines"),
    "42 cycle": (
        with_nodes(node("Abs", ["b"], ["a"]), node("Neg", ["a"], ["b"]), ABS),
        "read from each other",
    ),
    "43 node reads itself": (with_nodes(node("Add", ["x", "y"], ["y"])), "read from each other"),
    "44 output made by nobody": (model(graph([node("Abs", ["x"], ["z"])])), "is made by no node"),
    "45 output twice": (
        model(graph([ABS], [], (value("x"),), (value("y"), value("y")))),
        "have one name",
    ),
    "46 node without outputs": (with_nodes(ABS, node("Neg", ["x"], [])), "has no output"),
    "47 function calls itself": (
        model(
            graph([node("f", ["x"], ["y"], domain="local")]),
            blob(25, function("f", ["a"], ["b"], [node("f", ["a"], ["b"], domain="local")])),
        ),
        "calls itself",
    ),
    "48 functions call each other": (
        model(
            graph([node("f", ["x"], ["y"], domain="local")]),
            blob(25, function("f", ["a"], ["b"], [node("g", ["a"], ["b"], domain="local")])),
            blob(25, function("g", ["a"], ["b"], [node("f", ["a"], ["b"], domain="local")])),
        ),
        "calls itself, directly or through another",
    ),
    "49 functions that double 60 times": (bomb(60), "more than 1,000,000 nodes"),
    "50 function twice": (
        model(graph([ABS]), *[blob(25, function("f", ["a"], ["a"], []))] * 2),
        "stands twice",
    ),
    "51 call with too many inputs": (
        model(
            graph([node("f", ["x", "x"], ["y"], domain="local")]),
            blob(25, function("f", ["a"], ["a"], [])),
        ),
        "more inputs or outputs than the function",
    ),
    "52 function without its output": (
        model(
            graph([node("f", ["x"], ["y"], domain="local")]),
            blob(25, function("f", ["a"], ["b"], [])),
        ),
        "does not make 'b'",
    ),
    "53 function reads the graph": (
        model(
            graph([node("f", ["x"], ["y"], domain="local")], [tensor("w", [2], floats(1, 2))]),
            blob(25, function("f", ["a"], ["b"], [node("Add", ["a", "w"], ["b"])])),
        ),
        "'w', which nothing defines",
    ),
    "54 reference outside of functions": (
        with_nodes(node("Abs", ["x"], ["y"], attribute("a", 1, blob(21, "b")))),
        "outside of one",
    ),
    "55 attribute twice": (
        with_nodes(node("Abs", ["x"], ["y"], *[attribute("a", A_INT, number(3, 1))] * 2)),
        "stands twice",
    ),
    "56 attribute of an unknown type": (
        with_nodes(node("Abs", ["x"], ["y"], attribute("a", 99, number(3, 1)))),
        "has no value",
    ),
    "57 tensor attribute without tensor": (
        with_nodes(node("ConstantOfShape", ["x"], ["y"], attribute("value", A_TENSOR))),
        "has no value",
    ),
    "58 constant without a value": (with_nodes(node("Constant", [], ["y"])), "has 0 values"),
    "59 constant with another value": (
        with_nodes(node("Constant", [], ["y"], attribute("shape", A_INTS, blob(8, varint(1))))),
        "holds 'shape'",
    ),
    "60 constant of a huge tensor": (
        with_nodes(
            node("Constant", [], ["y"], attribute("value", A_TENSOR, blob(5, tensor("", [2**50]))))
        ),
        "has 0 numbers in float_data",
    ),
    "61 sparse index outside": (sparse([4], [4]), "index outside its shape or twice"),
    "62 sparse index negative": (sparse([4], [-1]), "index outside its shape or twice"),
    "63 sparse index twice": (sparse([4], [1, 1]), "index outside its shape or twice"),
    "64 sparse bomb": (sparse([2**50], [1]), "bytes when dense"),
    "65 sparse indices as floats": (sparse([4], [1], kind=11), "no int64 indices"),
    "66 input of an unknown type": (
        model(graph([ABS], [], (value("x", (2,), 77),))),
        "element type 77 is unknown",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_malformed_file_is_refused(tmp_path: Path, name: str) -> None:
    data, rule = CASES[name]
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=rule) as caught:
        bounded(lambda: read_model(path))
    assert "\n" not in str(caught.value)


PLACES: dict[str, tuple[dict[str, str], str]] = {
    "70 parent folder": ({"location": "../data"}, "leaves the folder"),
    "71 parent folder within": ({"location": "a/../../data"}, "leaves the folder"),
    "72 absolute": ({"location": "/etc/hostname"}, "leaves the folder"),
    "73 backslashes": ({"location": "..\\data"}, "leaves the folder"),
    "74 drive": ({"location": "C:data"}, "leaves the folder"),
    "75 NUL": ({"location": "data\0.bin"}, "leaves the folder"),
    "76 empty": ({"location": ""}, "leaves the folder"),
    "77 the folder itself": ({"location": "."}, "no regular file"),
    "78 missing file": ({"location": "other"}, "is missing; put it beside the model"),
    "79 no location": ({"offset": "0"}, "its location is missing"),
    "80 negative offset": ({"location": "data", "offset": "-1"}, "whole number >= 0"),
    "81 huge offset": ({"location": "data", "offset": str(2**62)}, "the file has 16"),
    "82 offset of 5,000 digits": ({"location": "data", "offset": "9" * 5000}, "whole number"),
    "83 offset as hexadecimal": ({"location": "data", "offset": "0x1"}, "whole number"),
    "84 offset of other digits": ({"location": "data", "offset": "\u0661"}, "whole number"),
    "85 offset with a sign": ({"location": "data", "offset": "+1"}, "whole number"),
    "86 offset past the end": ({"location": "data", "offset": "9"}, "ends at byte 17"),
    "87 length too short": ({"location": "data", "length": "7"}, "needs 8"),
    "88 length too long": ({"location": "data", "length": "16"}, "needs 8"),
    "89 negative length": ({"location": "data", "length": "-8"}, "whole number >= 0"),
    "90 link out of the folder": ({"location": "link"}, "outside the model's folder"),
    "91 folder that links out": ({"location": "outside/secret"}, "outside the model's folder"),
    "92 FIFO": ({"location": "fifo"}, "no regular file"),
    "93 dangling link": ({"location": "dangling"}, "is missing"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with data, links that leave it and a FIFO."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_bytes(bytes(16))
    (inside / "data").write_bytes(floats(1, 2, 3, 4))
    (inside / "link").symlink_to(outside / "secret")
    (inside / "outside").symlink_to(outside)
    (inside / "dangling").symlink_to(inside / "nothing")
    os.mkfifo(inside / "fifo")
    return inside


@pytest.mark.parametrize("name", PLACES)
def test_external_data_stays_inside(folder: Path, name: str) -> None:
    entries, rule = PLACES[name]
    path = folder / "m.onnx"
    path.write_bytes(stored(external("w", [2], FLOAT, **entries)))
    with pytest.raises(FormatError, match=rule):
        bounded(lambda: read_model(path))


def test_94_links_and_hard_links_within_the_folder_are_read(folder: Path) -> None:
    (folder / "near").symlink_to("data")
    os.link(folder / "data", folder / "hard")
    path = folder / "m.onnx"
    for name in ("near", "hard", "./data"):
        path.write_bytes(stored(external("w", [2], FLOAT, location=name, offset="8")))
        assert read_model(path).weights["w"].numpy().tolist() == [3, 4]


def test_95_keys_named_like_attributes_do_nothing(folder: Path) -> None:
    path = folder / "m.onnx"
    entries = {"location": "data", "__class__": "x", "offset ": "-1", "basepath": "/etc"}
    path.write_bytes(stored(external("w", [2], FLOAT, **entries)))
    assert read_model(path).weights["w"].numpy().tolist() == [1, 2]
    twice = tensor("w", [2], None, FLOAT, number(14, 1), blob(13, pair("location", "data")),
                   blob(13, pair("location", "fifo")))  # fmt: skip
    path.write_bytes(stored(twice))
    with pytest.raises(FormatError, match="external key 'location' twice"):
        read_model(path)


def test_96_data_shortened_after_it_was_read(folder: Path) -> None:
    path = folder / "m.onnx"
    path.write_bytes(stored(external("w", [4], FLOAT, location="data")))
    found = read_model(path)
    (folder / "data").write_bytes(bytes(4))
    with pytest.raises(FormatError, match="changed or removed"):
        found.weights["w"].numpy()


def test_97_model_that_is_a_fifo_or_folder(folder: Path) -> None:
    for name in ("fifo", "."):
        with pytest.raises(FormatError, match="no regular file"):
            read_model(folder / name)


HUGE = np.array([2**20, 2**20], np.int64)
BOMBS: dict[str, tuple[list[bytes], list[bytes]]] = {
    "ConstantOfShape": ([node("ConstantOfShape", ["s"], ["y"])], []),
    "Expand": ([node("Expand", ["one", "s"], ["y"])], []),
    "Tile": ([node("Tile", ["one", "s"], ["y"])], []),
    "Range": (
        [node("Range", ["zero", "limit", "step"], ["y"])],
        [tensor(n, [], np.array(v, np.int64).tobytes(), INT64)
         for n, v in (("zero", 0), ("limit", 2**50), ("step", 1))],
    ),
    "Pad": ([node("Pad", ["one", "pads"], ["y"])], []),
    "Resize": ([node("Resize", ["image", "", "", "sizes"], ["y"])], []),
    "OneHot": ([node("OneHot", ["ids", "limit", "pair"], ["y"])], []),
}  # fmt: skip
SHARED = [
    tensor("s", [2], HUGE.tobytes(), INT64),
    tensor("one", [1, 1], floats(1)),
    tensor("pads", [4], np.array([0, 0, 2**20, 2**20], np.int64).tobytes(), INT64),
    tensor("image", [1, 1, 1, 1], floats(1)),
    tensor("sizes", [4], np.array([1, 1, 2**20, 2**20], np.int64).tobytes(), INT64),
    tensor("ids", [1], np.array([0], np.int64).tobytes(), INT64),
    tensor("pair", [2], floats(0, 1)),
]


@pytest.mark.parametrize("name", BOMBS)
def test_98_small_files_that_would_fill_memory(tmp_path: Path, name: str) -> None:
    nodes, extra = BOMBS[name]
    if name == "OneHot":
        extra = [tensor("limit", [], np.array(2**45, np.int64).tobytes(), INT64)]
    path = tmp_path / "m.onnx"
    kind = INT64 if name == "Range" else FLOAT
    path.write_bytes(model(graph(nodes, [*SHARED, *extra], (), (value("y", None, kind),))))
    found = bounded(lambda: read_model(path))
    bounded(lambda: describe(found, str(path)))
    with pytest.raises(HalfbyteError):
        bounded(lambda: Session(found).run({}))


def inspected(path: Path) -> None:
    """Read and describe a file, and decode its weights."""
    detect(path)
    found = read_model(path)
    describe(found, str(path), read_weights=True)


def everything() -> bytes:
    """Return a small model with most kinds of messages."""
    branch = [
        attribute(name, A_GRAPH, blob(6, graph([node(op, ["a"], ["b"])], [], (), (value("b"),))))
        for name, op in (("then_branch", "Neg"), ("else_branch", "Abs"))
    ]
    nodes = [
        node("Add", ["x", "w"], ["a"], name="/layers.1/Add"),
        node("If", ["flag"], ["c"], *branch),
        node("Reshape", ["c", "shape"], ["d"]),
        node("f", ["d"], ["e"], domain="local"),
        node("Transpose", ["e"], ["g"], attribute("perm", A_INTS, blob(8, b"\1\0"))),
        node("MatMul", ["g", "m"], ["y"]),
    ]
    initializers = [
        tensor("w", [2], floats(1, 2)),
        tensor("flag", [], b"\1", 9),
        tensor("shape", [2], None, INT64, blob(7, b"\1\2")),
        tensor("m", [1, 3], None, FLOAT, blob(4, floats(1, 2, 3))),
        tensor("n", [3], b"\x21\x03", 22),
    ]
    body = [node("Abs", ["p"], ["q"])]
    return model(
        graph(nodes, initializers, (value("x"),), (value("y", ("r", 3)),)),
        blob(25, function("f", ["p"], ["q"], body)),
        blob(8, opset(1, "local")),
    )


def test_99_the_whole_file_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(everything())
    found = Session(read_model(path)).run({"x": np.array([1, 2], np.float32)})
    assert found["y"].shape == (2, 3)


def test_100_truncations(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    whole = everything()
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(HalfbyteError):
            inspected(path)


@pytest.mark.parametrize("seed", range(8))
def test_101_flipped_bytes(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    path = tmp_path / "m.onnx"
    whole = everything()
    for _ in range(120):
        spoiled = bytearray(whole)
        for _ in range(generator.choice((1, 1, 2, 5))):
            spoiled[generator.randrange(len(spoiled))] = generator.randrange(256)
        path.write_bytes(spoiled)
        try:
            inspected(path)
        except HalfbyteError as error:
            assert "\n" not in str(error)
