"""Types that a file declares and its operators contradict are told, and lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from halfbyte.converters.onnx.reader import read_model
from halfbyte.pipeline import inspect
from halfbyte.runtime.session import Session
from support.onnx_wire import A_GRAPH, INT64, attribute, blob, graph, model, node, value

NODES = [node("Abs", ["x"], ["a"]), node("Neg", ["a"], ["y"])]


def save(path: Path, inner: list[bytes], output: bytes) -> Path:
    infos = [blob(13, each) for each in inner]
    path.write_bytes(model(graph(NODES, (), [value("x", ("n", 4))], [output], *infos)))
    return path


@pytest.mark.parametrize(
    ("declared", "shown"),
    [
        (value("a", ("n", 5)), "float32[n, 5]"),
        (value("a", (2, 4, 1)), "float32[2, 4, 1]"),
        (value("a", ("n", 4), INT64), "int64[n, 4]"),
        (value("a", None, INT64), "int64[*]"),
    ],
)
def test_a_wrong_declaration_is_a_problem(tmp_path: Path, declared: bytes, shown: str) -> None:
    path = save(tmp_path / "m.onnx", [declared], value("y", ("n", 4)))
    assert inspect(path).problems == [
        "types that are declared wrong, what operators make counts: "
        f"'a' is declared {shown}, its node makes float32[n, 4]"
    ]
    found = Session(read_model(path)).run({"x": np.ones((3, 4), np.float32)})
    assert found["y"].shape == (3, 4)


@pytest.mark.parametrize(
    "declared",
    [value("a", ("n", 4)), value("a", ("other", 4)), value("a", (1, 4)), value("a", None)],
)
def test_open_dimensions_contradict_nothing(tmp_path: Path, declared: bytes) -> None:
    path = save(tmp_path / "m.onnx", [declared, value("unknown", (7,))], value("y", ("n", "m")))
    assert inspect(path).problems == []


def test_outputs_and_many_at_once(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [], value("y", ("n", 7)))
    assert "'y' is declared float32[n, 7], its node makes" in inspect(path).problems[0]
    names = [f"v{index}" for index in range(5)]
    chain = [node("Abs", [a], [b]) for a, b in zip(["x", *names], [*names, "y"], strict=True)]
    infos = [blob(13, value(name, (9, 9))) for name in names]
    content = graph(chain, (), [value("x", ("n", 4))], [value("y", ("n", 4))], *infos)
    path.write_bytes(model(content))
    (problem,) = inspect(path).problems
    assert problem.count("is declared") == 3
    assert problem.endswith("; and 2 more")


def test_hostile_names_stay_short_and_printable(tmp_path: Path) -> None:
    name = "\x1b[31m" + "n" * 100_000
    nodes = [node("Abs", ["x"], [name]), node("Neg", [name], ["y"])]
    infos = blob(13, value(name, (9,)))
    path = tmp_path / "m.onnx"
    path.write_bytes(model(graph(nodes, (), [value("x", (4,))], [value("y", (4,))], infos)))
    (problem,) = inspect(path).problems
    assert len(problem) < 300
    assert "\x1b" not in problem


def test_inside_of_branches(tmp_path: Path) -> None:
    inner = graph([node("Neg", ["x"], ["z"])], (), (), [value("z", (3,))])
    held = [attribute(f"{kind}_branch", A_GRAPH, blob(6, inner)) for kind in ("then", "else")]
    content = graph(
        [node("If", ["flag"], ["y"], *held)], (), [value("x", (4,)), value("flag", (), 9)],
        [value("y", (4,))],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    path.write_bytes(model(content))
    (problem,) = inspect(path).problems
    assert problem.count("'z' is declared float32[3], its node makes float32[4]") == 2
