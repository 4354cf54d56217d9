"""Graphs in pieces: the same values as the whole, each node once, what is kept, what is freed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from halfbyte.converters.architectures import ARCHITECTURES
from halfbyte.errors import HalfbyteError
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.transcode import transcode
from halfbyte.ir.graph import Graph
from halfbyte.ir.model import Model
from halfbyte.ir.passes import linear_from_matmul
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.quant.calibration.activations import ActivationStore
from halfbyte.quant.calibration.batches import Batches, completed, input_batches, token_batches
from halfbyte.quant.calibration.pieces import Cut, cut
from halfbyte.quant.calibration.streams import SiteRows, Stream
from support.calibration import linears, observed, random_batches
from support.random_models import random_model

TYPES = sorted(ARCHITECTURES)
WAYS = [(True, True), (False, True), (False, False)]


def in_bfloat16(model: Model) -> Model:
    """Return the model with its linear layers' weights in bfloat16."""
    weights = {
        name: transcode(tensor, Dense("bfloat16")) if name in linears(model) else tensor
        for name, tensor in model.weights.items()
    }
    return model.with_weights(weights)


def run(
    model: Model,
    whole: Cut,
    batches: Batches,
    limit: int = 1 << 30,
    folder: Path | None = None,
    decode: bool = False,
):
    """Return the rows that each weight meets and count, and the store after the last piece."""
    found = {}
    with ActivationStore(limit, folder) as store:
        stream = Stream(completed(batches, model.graph), store, threads=1, decode=decode)
        for piece in whole.pieces:
            stream.advance(piece)
            for site in piece.sites:
                rows = SiteRows(site, stream)
                seen = [rows.sample(n).copy() for n in range(len(batches.runs))]
                found |= dict.fromkeys(site.weights, seen)
            stream.release(piece)
        return found, store


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("way", WAYS)
def test_pieces_give_what_the_whole_gives(model_type: str, way: tuple[bool, bool]) -> None:
    # Float32 weights go through another product in a graph without states: same sums, other order.
    model = in_bfloat16(random_model(model_type, seed=3))
    batches = random_batches(model)
    whole = cut(model.graph, linears(model), way[0], replay=way[1])
    assert not whole.missing and not whole.again
    names = [name for site in whole.sites for name in site.weights]
    assert sorted(names) == sorted(linears(model))
    found, store = run(model, whole, batches)
    assert store.held_bytes == 0
    assert found.keys() == set(linears(model))
    wanted = observed(model, batches).rows
    for name, runs in found.items():
        for rows, x, mask in zip(runs, wanted[name], batches.masks, strict=True):
            counted = x if mask is None or len(x) != mask.size else x[mask.reshape(-1)]
            assert np.array_equal(rows, counted), name


@pytest.mark.parametrize("model_type", ["llama", "bert"])
def test_decoded_matrices_change_the_order_of_sums_only(model_type: str) -> None:
    model = in_bfloat16(random_model(model_type, seed=3))
    batches = random_batches(model)
    found, _ = run(model, cut(model.graph, linears(model)), batches, decode=True)
    wanted = observed(model, batches).rows
    for name, runs in found.items():
        if all(mask is None for mask in batches.masks):
            np.testing.assert_allclose(runs[1], wanted[name][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", TYPES)
def test_each_node_runs_once(model_type: str) -> None:
    model = random_model(model_type, seed=3)
    whole = cut(model.graph, linears(model))
    seen = Counter(node.outputs[0].name for piece in whole.pieces for node in piece.graph.nodes)
    again = {name for name, count in seen.items() if count > 1}
    assert all("rope" in name or "mask" in name or "position" in name for name in again), again
    heads = {"lm_head", "logits"}
    assert not heads & seen.keys(), "what no later layer reads need not run"
    assert not any(piece.graph.states for piece in whole.pieces)


def test_layers_are_probed_then_run_again() -> None:
    model = random_model("llama", seed=1)
    whole = cut(model.graph, linears(model), False)
    shape = [(len(piece.sites), bool(piece.drops)) for piece in whole.pieces]
    assert shape == [(0, False), (4, True), (0, True), (4, True), (0, True), (1, True)]
    kept = cut(model.graph, linears(model), False, replay=False)
    assert [len(piece.sites) for piece in kept.pieces] == [4, 4, 1]


def test_spilled_values_are_the_same(tmp_path: Path) -> None:
    model = random_model("mixtral", seed=2)
    batches = random_batches(model, length=40)
    whole = cut(model.graph, linears(model))
    kept, _ = run(model, whole, batches)
    spilled, store = run(model, whole, batches, 0, tmp_path)
    assert store.spilled_bytes > 0
    assert not list(tmp_path.iterdir())
    for name, runs in kept.items():
        for rows, others in zip(runs, spilled[name], strict=True):
            assert np.array_equal(rows, others), name


def test_store_frees_files_and_bytes(tmp_path: Path) -> None:
    array = np.arange(4096, dtype=np.float32)
    with ActivationStore(array.nbytes, tmp_path) as store:
        store.put("a", 0, array)
        store.put("b", 0, array + 1)
        store.put("b", 1, (array + 2).reshape(64, 64))
        assert store.held_bytes == array.nbytes
        assert np.array_equal(store.get("b", 1), (array + 2).reshape(64, 64))
        files = list(next(tmp_path.iterdir()).iterdir())
        assert len(files) == 1 and files[0].stat().st_size == 2 * array.nbytes
        store.free("b")
        assert not list(next(tmp_path.iterdir()).iterdir()) and not store.has("b")
        store.put("a", 0, array[:8])
        assert store.held_bytes == 32
        store.free("a")
        assert store.held_bytes == 0
    assert not list(tmp_path.iterdir())


def plain_graph() -> Graph:
    """Return a graph of MatMul over a value of data-dependent length."""
    graph = Graph("plain")
    x = graph.add_input("x", "float32", ["n", 6])
    generator = np.random.default_rng(4)

    def constant(name: str, *shape: int):
        values = generator.standard_normal(shape).astype(np.float32)
        return graph.add_constant(tensor_from_array(name, values))

    first = graph.add("MatMul", [x, constant("first", 6, 8)], since_version=13)
    picked = graph.add("NonZero", [graph.add("Relu", [first], since_version=14)], since_version=13)
    rows = graph.add("Cast", [picked], since_version=24, to="float32")
    turned = graph.add("Transpose", [rows], since_version=24, perm=[1, 0])
    second = graph.add("MatMul", [turned, constant("second", 2, 5)], since_version=13)
    side = graph.add("MatMul", [x, constant("side", 6, 8)], since_version=13)
    both = graph.add("Add", [first, side], since_version=14)
    third = graph.add("MatMul", [both, constant("third", 8, 3)], since_version=13)
    graph.outputs = [second, third]
    assert linear_from_matmul.apply(graph)
    return graph


def test_plain_graphs_with_lengths_that_values_decide() -> None:
    graph = plain_graph()
    weights = {tensor.name: tensor for tensor in graph.constants.values()}
    model = Model(weights, build=lambda _: graph)
    generator = np.random.default_rng(5)
    batches = input_batches(
        [{"x": generator.standard_normal((n, 6)).astype(np.float32)} for n in (3, 7)]
    )
    whole = cut(graph, ["first", "second", "side", "third"])
    assert [site.weights for site in whole.sites] == [("first", "side"), ("second",), ("third",)]
    found, _ = run(model, whole, batches)
    wanted = observed(model, batches).rows
    for name, runs in found.items():
        for rows, x in zip(runs, wanted[name], strict=True):
            assert np.array_equal(rows, x), name
    assert np.array_equal(found["first"][1], batches.runs[1]["x"])


def test_weights_without_a_site_are_told() -> None:
    model = random_model("llama")
    whole = cut(model.graph, [*linears(model), "model.embed_tokens.weight"])
    assert whole.missing == ("model.embed_tokens.weight",)
    tied = random_model("llama", tie_word_embeddings=True)
    assert "model.embed_tokens.weight" in linears(tied)


def test_inputs_are_checked() -> None:
    model = random_model("llama")
    ids = np.zeros((1, 4), np.int64)
    with pytest.raises(HalfbyteError, match="no input is named 'ids'; inputs are input_ids"):
        completed(input_batches([{"ids": ids}]), model.graph)
    with pytest.raises(HalfbyteError, match="input 'input_ids' is missing"):
        completed(input_batches([{}]), model.graph)
    with pytest.raises(HalfbyteError, match="at least one is required"):
        input_batches([])
    runs = token_batches(np.zeros((5, 4), np.int64), run_tokens=9)
    assert [run["input_ids"].shape for run in runs.runs] == [(2, 4), (2, 4), (1, 4)]
    assert runs.samples == 5
