"""Passes keep what a graph computes; text reads back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.ir.graph import Graph
from halfbyte.ir.legality import check
from halfbyte.ir.passes import PASSES, get_pass, run_passes
from halfbyte.ir.text import parse
from halfbyte.runtime.session import Session
from support.tiny_graphs import random_graph

SHAPE = (2, 8)
# a fused node rounds where the separate ones do, but folding meets constants in another order
TOLERANCE = 1e-5
CHOICES = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=24
)


def outputs(graph: Graph) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    feeds = {name: generator.standard_normal(SHAPE).astype(np.float32) for name in ("a", "b")}
    return list(Session(graph, "reference", fuse=False).run(feeds).values())


def agree(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    assert len(left) == len(right)
    for first, second in zip(left, right, strict=True):
        np.testing.assert_allclose(first, second, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", [*PASSES, "all"])
@settings(max_examples=25, deadline=None)
@given(choices=CHOICES)
def test_pass_keeps_semantics(name: str, choices: list[tuple[int, int, int]]) -> None:
    graph = random_graph(choices, SHAPE)
    check(graph)
    before, names = outputs(graph), [value.name for value in graph.outputs]
    if name == "all":
        run_passes(graph)
    else:
        get_pass(name)(graph)
    check(graph)
    assert [value.name for value in graph.outputs] == names
    agree(outputs(graph), before)


@settings(max_examples=25, deadline=None)
@given(choices=CHOICES)
def test_cpu_runs_fused_graphs_like_the_reference(choices: list[tuple[int, int, int]]) -> None:
    graph = random_graph(choices, SHAPE)
    generator = np.random.default_rng(0)
    feeds = {name: generator.standard_normal(SHAPE).astype(np.float32) for name in ("a", "b")}
    found = list(Session(graph, "cpu", threads=1).run(feeds).values())
    for first, second in zip(found, outputs(graph), strict=True):
        scale = max(1.0, float(np.abs(second).max(initial=0, where=np.isfinite(second))))
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5 * scale)


@settings(max_examples=50, deadline=None)
@given(choices=CHOICES)
def test_text_reads_back(choices: list[tuple[int, int, int]]) -> None:
    graph = random_graph(choices, SHAPE)
    run_passes(graph)
    text = str(graph)
    twin = parse(text, graph.constants)
    check(twin)
    assert str(twin) == text
    assert str(graph.copy()) == text
    agree(outputs(twin), outputs(graph))
