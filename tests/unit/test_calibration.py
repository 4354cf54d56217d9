"""Collecting what linear layers see: against a naive sum over hidden states, batches, experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte.converters.architectures import ARCHITECTURES, get_architecture
from halfbyte.converters.gguf.imatrix import read_importance, write_importance
from halfbyte.errors import HalfbyteError
from halfbyte.importance import ImportanceRequest, collect_importance, observed_name
from halfbyte.ir.graph import Graph
from halfbyte.ir.model import Model
from halfbyte.ir.ops.inference import infer_types
from halfbyte.ir.ops.spec import ValueType
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.quant.calibration.imatrix import SquareCollector
from halfbyte.quant.calibration.text import pieces, run_chunks, token_chunks
from halfbyte.runtime.backend import Slot
from halfbyte.runtime.observation import Watched
from halfbyte.runtime.session import Session
from support.model_folders import tiny_model, write_model
from support.random_models import random_model

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
DECODERS = sorted(
    n for n in ARCHITECTURES if not get_architecture(n).is_encoder and n not in MIXTURES
)


def linear_names(model: Model) -> dict[str, int]:
    return {
        name: int(np.prod(tensor.shape[:-2]))
        for name, tensor in model.graph.constants.items()
        if observed_name(tensor, process_output=True)
    }


def hidden_states(model: Model, ids: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the input of every Linear by the name of its weight, from numpy alone."""
    graph: Graph = model.graph.copy()
    infer_types(graph)
    inputs = {
        node.inputs[1].name: node.inputs[0]
        for node in graph.nodes
        if node.op == "Linear" and node.inputs[0] is not None and node.inputs[1] is not None
    }
    graph.outputs = [*graph.outputs, *dict.fromkeys(inputs.values())]
    session = Session(graph, device="reference", fuse=False)
    found = session.run({"input_ids": ids})
    return {name: found[value.name] for name, value in inputs.items()}


@pytest.mark.parametrize("model_type", DECODERS)
def test_sums_are_those_of_the_hidden_states(model_type: str) -> None:
    model = random_model(model_type, seed=5)
    table = np.random.default_rng(6).integers(0, model.config["vocab_size"], (3, 11))
    names = linear_names(model)
    assert len(names) >= 4 * model.config["num_hidden_layers"]
    collector = SquareCollector(names)
    session = Session(model, threads=2, observer=collector)
    run_chunks(session, table, batch=11, every_output=True)
    assert collector.found.keys() == names.keys()
    wanted = [hidden_states(model, row[None]) for row in table]
    for name, held in collector.found.items():
        squares = sum(np.square(h[name].astype(np.float64)).sum((0, 1)) for h in wanted)
        np.testing.assert_allclose(held.sums[0], squares, rtol=2e-5, err_msg=name)
        assert held.counts.tolist() == [33], name


@pytest.mark.parametrize("batch", [1, 3, 5, 10, 20, 25])
def test_the_batch_changes_nothing(batch: int) -> None:
    model = random_model("llama", seed=7)
    table = np.random.default_rng(8).integers(0, model.config["vocab_size"], (5, 10))
    results = []
    for size in (10, batch):
        collector = SquareCollector(linear_names(model))
        run_chunks(Session(model, observer=collector), table, batch=size, every_output=True)
        results.append(collector.found)
    for name, held in results[0].items():
        assert np.array_equal(
            held.sums.astype(np.float32), results[1][name].sums.astype(np.float32)
        ), name
        assert held.counts.tolist() == results[1][name].counts.tolist() == [50]


def test_fused_and_plain_graphs_show_the_same(tmp_path: Path) -> None:
    model = random_model("qwen2", seed=9)
    table = np.random.default_rng(1).integers(0, model.config["vocab_size"], (1, 6))
    results = []
    for fuse in (True, False):
        collector = SquareCollector(linear_names(model))
        session = Session(model, fuse=fuse, observer=collector)
        run_chunks(session, table, batch=6, every_output=False)
        results.append(collector.found)
    # One position has logits: the head's input is one row, which layers' inputs do not notice.
    head = "lm_head.weight"
    assert results[0].keys() == results[1].keys()
    for name, held in results[0].items():
        np.testing.assert_allclose(held.sums, results[1][name].sums, rtol=1e-5)
        assert held.counts.tolist() == [1 if name == head else 6]


class Recorder:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[str, ...], tuple[int, ...]]] = []

    def wants(self, weight: str) -> bool:
        return "v_proj" not in weight

    def observe(self, weights: Sequence[str], x: Any, experts: Any) -> None:
        assert experts is None and x.dtype == np.float32
        self.calls.append((tuple(weights), x.shape))


def test_weights_of_one_input_are_told_together() -> None:
    model = random_model("llama", num_hidden_layers=1)
    recorder = Recorder()
    session = Session(model, observer=recorder)
    session.run({"input_ids": np.zeros((2, 3), np.int64), "output_positions": [0]})
    width, inner = model.config["hidden_size"], model.config["intermediate_size"]
    stem = "model.layers.0."
    # The value is not wanted; the head sees the one position of each row that it answers.
    assert [call for call in recorder.calls if "lm_head" not in call[0][0]][:4] == [
        ((f"{stem}self_attn.q_proj.weight", f"{stem}self_attn.k_proj.weight"), (6, width)),
        ((f"{stem}self_attn.o_proj.weight",), (6, width)),
        ((f"{stem}mlp.gate_proj.weight", f"{stem}mlp.up_proj.weight"), (6, width)),
        ((f"{stem}mlp.down_proj.weight",), (6, inner)),
    ]


@pytest.mark.parametrize("used", [1, 2, 4])
def test_experts_have_sums_of_their_own(used: int) -> None:
    rng = np.random.default_rng(used)
    collector = SquareCollector({"w": 9, "v": 9})
    sums, counts = np.zeros((9, 5)), np.zeros(9, np.int64)
    for _ in range(3):
        x = rng.standard_normal((40, 5)).astype(np.float32)
        experts = np.stack([rng.permutation(7)[:used] for _ in range(40)])
        collector.observe(["w", "v"], x, experts)
        for row, chosen in zip(x, experts, strict=True):
            for expert in chosen:
                sums[expert] += np.square(row.astype(np.float64))
                counts[expert] += 1
    for name in ("w", "v"):
        np.testing.assert_allclose(collector.found[name].sums, sums, rtol=1e-12)
        assert collector.found[name].counts.tolist() == counts.tolist()
    scarce = collector.scarce()
    assert [s.weight for s in scarce] == ["w", "v"]
    assert (scarce[0].experts, scarce[0].unseen) == (9, 2)
    assert scarce[0].few == int(((counts > 0) & (counts < 32)).sum())
    assert "2 of 9 experts saw no token" in str(scarce[0])


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_inputs_must_be_finite(value: float) -> None:
    x = np.ones((3, 4), np.float32)
    x[1, 2] = value
    for experts in (None, np.zeros((3, 1), np.int64)):
        with pytest.raises(HalfbyteError, match="weight 'w': its inputs are infinite or NaN"):
            SquareCollector({"w": 1}).observe(["w"], x, experts)


def test_chunks() -> None:
    assert token_chunks(range(11), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert token_chunks(range(11), 4, first_token=99).tolist()[1] == [99, 5, 6, 7]
    assert token_chunks(range(12), 4, skip=1, chunks=1).tolist() == [[4, 5, 6, 7]]
    for length, skip in ((3, 0), (11, 2)):
        with pytest.raises(HalfbyteError, match="chunks of 4 are required; give a longer text"):
            token_chunks(range(length), 4, skip=skip)


def test_pieces() -> None:
    table = np.arange(12).reshape(3, 4)
    found = [(anew, ids.shape, int(ids[0, 0])) for anew, ids in pieces(table, 3)]
    assert found[:3] == [(True, (1, 3), 0), (False, (1, 1), 3), (True, (1, 3), 4)]
    assert [ids.shape for _, ids in pieces(table, 9)] == [(2, 4), (1, 4)]


def test_observed_names() -> None:
    def name(key: WeightKey | None, shape: tuple[int, ...], output: bool = False) -> str | None:
        tensor = tensor_from_array("x", np.zeros(shape, np.float32))
        return observed_name(tensor if key is None else tensor.identified(key), output)

    assert name(WeightKey(Role.FEED_FORWARD_UP, 3), (2, 2)) == "blk.3.ffn_up.weight"
    assert name(WeightKey(Role.FEED_FORWARD_UP, 3, "bias"), (2,)) is None
    assert name(WeightKey(Role.FEED_FORWARD_NORM, 3), (2,)) is None
    assert name(WeightKey(Role.TOKEN_EMBEDDING), (2, 2), True) is None
    assert name(WeightKey(Role.OUTPUT_HEAD), (2, 2)) is None
    assert name(WeightKey(Role.OUTPUT_HEAD), (2, 2), True) == "output.weight"
    assert name(WeightKey(Role.POOLER, 1), (2, 2)) is None
    assert name(None, (2, 2)) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    model = tiny_model("llama", hidden_size=64, intermediate_size=128)
    for name in ("llama", "llama.gguf", "llama.hb"):
        write_model(model, root / name)
    (root / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 12)
    return root


def collected(folder: Path, name: str, **request: Any) -> Any:
    model = halfbyte.open(folder / name)
    return collect_importance(model, folder / "text.txt", ImportanceRequest(context=16, **request))


def test_every_format_gives_the_same_matrix(folder: Path, tmp_path: Path) -> None:
    found = [collected(folder, n, chunks=4).matrix for n in ("llama", "llama.gguf", "llama.hb")]
    for index, matrix in enumerate(found):
        write_importance(matrix, tmp_path / str(index))
    first = read_importance(tmp_path / "0")
    assert first.names[0] == "blk.0.attn_k.weight" and "output.weight" not in first.names
    assert (first.chunk_count, first.chunk_size) == (4, 16)
    assert first.datasets == (str(folder / "text.txt"),)
    assert {int(e.counts[0]) for e in first.entries.values()} == {64}
    for other in ("1", "2"):
        again = read_importance(tmp_path / other)
        assert again.names == first.names
        for name in first.names:
            np.testing.assert_allclose(
                again.entries[name].sums, first.entries[name].sums, rtol=1e-5
            )


def test_chunks_add_up(folder: Path) -> None:
    whole = collected(folder, "llama.gguf", chunks=5, batch=7).matrix
    parts = [
        collected(folder, "llama.gguf", chunks=2).matrix,
        collected(folder, "llama.gguf", chunks=3, skip=2).matrix,
    ]
    for name, entry in whole.entries.items():
        total = sum(part.entries[name].sums.astype(np.float64) for part in parts)
        np.testing.assert_allclose(entry.sums, total, rtol=1e-6)


def test_process_output(folder: Path) -> None:
    found = collected(folder, "llama.gguf", chunks=2, process_output=True)
    assert found.matrix.entries["output.weight"].counts.tolist() == [32]
    assert (found.tokens, found.warnings) == (32, ())


def test_models_that_cannot_be_run_over_text(folder: Path) -> None:
    for kind, match in (("bert", "no language model"), ("llama", "has no tokenizer")):
        with pytest.raises(HalfbyteError, match=match):
            collect_importance(random_model(kind), folder / "text.txt")


@pytest.mark.parametrize("rows", [(2, 3, 5), (2, 3, 4, 5)])
def test_chosen_experts_reach_the_observer(rows: tuple[int, ...]) -> None:
    """Rows meet all experts chosen for a token, or, after the first product, one each."""
    model = random_model("llama", num_hidden_layers=1)
    recorder = Recorder()
    plan = Session(model, observer=recorder).plan(
        {"input_ids": ValueType("int64", (1, 1)), "position_ids": ValueType("int64", (1, 1)),
         "output_positions": ValueType("int64", (1,))}
    )  # fmt: skip
    watched = next(step for step in plan.steps if isinstance(step, Watched))
    x = np.arange(np.prod(rows), dtype=np.float32).reshape(rows)
    experts = np.arange(24, dtype=np.int64).reshape(2, 3, 4) % 7
    seen: list[Any] = []
    recorder.observe = lambda *given: seen.append(given)  # type: ignore[method-assign]
    done: list[int] = []
    replace(
        watched,
        step=lambda: done.append(1),
        x=Slot("x", "float32", rows, x),
        chosen=Slot("e", "int64", experts.shape, experts),
    )()
    ((_, found, which),) = seen
    assert done == [1] and found.shape == (np.prod(rows[:-1]), 5)
    assert which.shape == ((6, 4) if len(rows) == 3 else (24, 1))
    assert which.ravel().tolist() == experts.ravel().tolist()
