"""Mixtures of experts: the operator on the CPU, checkpoints in pieces, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters import get_format, read
from halfbyte.converters.architectures import get_architecture
from halfbyte.converters.format import WriteOptions
from halfbyte.converters.gguf.expert_keys import experts_label
from halfbyte.converters.gguf.imatrix import ImportanceEntry, ImportanceMatrix, write_importance
from halfbyte.converters.gguf.metadata_value import typed
from halfbyte.converters.hugging_face.experts import (
    split_experts,
    stacks,
    with_stacked_experts,
)
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph
from halfbyte.ir.ops import op_spec
from halfbyte.ir.ops.spec import Context
from halfbyte.ir.part_views import SlicePart, StackedPart
from halfbyte.ir.tensor import ArrayPart, Tensor, tensor_from_array
from halfbyte.kernels import cpu
from halfbyte.pipeline import convert, quantize
from halfbyte.quant.algorithms.rtn import requantize
from halfbyte.runtime.cpu import CpuBackend
from halfbyte.runtime.cpu_experts import Experts, groups
from halfbyte.runtime.session import Session
from support.random_models import random_model

EXPERTS, ROWS, COLUMNS, USED = 6, 40, 256, 2
needs_kernels = pytest.mark.skipif(not cpu.available(), reason="needs the compiled kernels")


def stack(encoding: str = "float32") -> Tensor:
    values = np.random.default_rng(1).standard_normal((EXPERTS, ROWS, COLUMNS), dtype=np.float32)
    plain = tensor_from_array("w", values)
    return plain if encoding == "float32" else requantize(plain, encoding_from_name(encoding))


def graph_over(weight: Tensor) -> Graph:
    graph = Graph("experts")
    x = graph.add_input("x", "float32", ("tokens", COLUMNS))
    chosen = graph.add_input("experts", "int64", ("tokens", USED))
    inputs = (x, graph.add_constant(weight), chosen)
    graph.outputs.append(
        graph.add(
            "ExpertLinear", inputs, name="y", dtype="float32", shape=("tokens", USED, ROWS),
            domain=HALFBYTE_DOMAIN, since_version=1,
        )
    )  # fmt: skip
    return graph


def feed(tokens: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(2)
    chosen = rng.random((tokens, EXPERTS)).argsort(axis=1)[:, :USED]
    return {
        "x": rng.standard_normal((tokens, COLUMNS), dtype=np.float32),
        "experts": np.ascontiguousarray(chosen, np.int64),
    }


@needs_kernels
@pytest.mark.parametrize("compute", ["exact", "int8"])
@pytest.mark.parametrize("encoding", ["float32", "Q8_0", "Q4_K", "IQ4_XS", "int4-g32"])
def test_neither_batch_nor_threads_change_a_row(encoding: str, compute: str) -> None:
    graph, given = graph_over(stack(encoding)), feed(50)
    whole = Session(graph, compute=compute, threads=2).run(given)["y"].copy()
    alone = Session(graph, compute=compute, threads=1)
    for token in (0, 7, 49):
        one = {name: array[token : token + 1] for name, array in given.items()}
        np.testing.assert_array_equal(alone.run(one)["y"][0], whole[token])
    few = Session(graph, compute=compute, threads=1).run({n: a[:9] for n, a in given.items()})
    np.testing.assert_array_equal(few["y"], whole[:9])
    if compute == "exact":
        expected = Session(graph, "reference").run(given)["y"]
        np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@needs_kernels
def test_only_chosen_experts_are_made() -> None:
    weight = stack("Q8_0")
    experts = Experts(weight, CpuBackend().upload)
    np.testing.assert_array_equal(experts[2].decode(), weight.numpy()[2])
    assert experts.count == EXPERTS
    assert list(experts._held) == [2]
    assert experts[2] is experts[2]


def test_groups_are_in_order() -> None:
    found = list(groups(np.array([3, 1, 3, 0, 1, 3])))
    assert [(expert, places.tolist()) for expert, places in found] == [
        (0, [3]), (1, [1, 4]), (3, [0, 2, 5]),
    ]  # fmt: skip
    assert list(groups(np.empty(0, np.int64))) == []


@pytest.mark.parametrize("wrong", [-1, EXPERTS])
@pytest.mark.parametrize("device", ["reference", pytest.param("cpu", marks=needs_kernels)])
def test_unknown_experts_are_an_error(device: str, wrong: int) -> None:
    given = feed(3)
    given["experts"][1, 0] = wrong
    with pytest.raises(HalfbyteError, match="experts are 0 to 5"):
        Session(graph_over(stack()), device).run(given)


def test_equal_odds_take_the_lower_expert() -> None:
    odds = np.array([[0.2, 0.4, 0.4, 0.0], [0.25, 0.25, 0.25, 0.25]], np.float32)
    given = [odds, np.array([2])]
    _, chosen = op_spec("TopK").evaluate(given, op_spec("TopK").with_defaults({}), Context())
    assert chosen.tolist() == [[1, 2], [0, 1]]


def test_parts_stack_and_slice() -> None:
    rows = np.arange(42, dtype=np.float32).reshape(14, 3)
    whole = StackedPart((ArrayPart(rows[:4]), ArrayPart(rows[4:9]), ArrayPart(rows[9:])))
    assert (whole.shape, whole.dtype) == ((14, 3), np.float32)
    for start in range(15):
        for stop in (*range(start, 16), None):
            np.testing.assert_array_equal(whole.read(start, stop), rows[start:stop])
            piece = SlicePart(whole, 2, 12)
            np.testing.assert_array_equal(piece.read(start, stop), rows[2:12][start:stop])
    assert SlicePart(whole, 2, 12).shape == (10, 3)


def pieces(model_type: str = "qwen3_moe") -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    """Return an architecture, a config and the weights as a checkpoint has them."""
    model = random_model(model_type)
    architecture = get_architecture(model_type)
    specs = stacks(architecture, model.config)
    found = {}
    for tensor in model.weights.values():
        split = [tensor]
        if tensor.key in specs:
            split = split_experts(tensor, specs[tensor.key])
        found |= {piece.name: piece.identified(None) for piece in split}
    return architecture, model.config, found


def test_a_missing_expert_is_named() -> None:
    architecture, config, weights = pieces()
    del weights["model.layers.1.mlp.experts.5.up_proj.weight"]
    with pytest.raises(FormatError, match=r"layers.1.mlp.experts.5.up_proj.weight' is missing"):
        with_stacked_experts(weights, architecture, config)


def test_experts_of_one_layer_are_alike() -> None:
    architecture, config, weights = pieces()
    name = "model.layers.0.mlp.experts.2.down_proj.weight"
    half = tensor_from_array(name, weights[name].numpy().astype(np.float16))
    with pytest.raises(FormatError, match=r"experts.2.down_proj.weight' is float16"):
        with_stacked_experts({**weights, name: half}, architecture, config)
    with pytest.raises(FormatError, match="both name"):
        with_stacked_experts(
            {**weights, name.removeprefix("model."): weights[name]}, architecture, config
        )


def test_nothing_is_read_while_experts_are_stacked() -> None:
    class Silent(ArrayPart):
        def read(self, start: int = 0, stop: int | None = None) -> Any:
            raise AssertionError("read")

    architecture, config, weights = pieces("mixtral")
    silent = {
        name: replace(t, parts={"data": Silent(t.parts["data"].read())})
        for name, t in weights.items()
    }
    found = with_stacked_experts(silent, architecture, config)
    assert found["model.layers.0.block_sparse_moe.experts.w1.weight"].shape == (4, 96, 64)


def test_a_size_is_that_of_one_expert() -> None:
    model = random_model("mixtral", num_experts=8, hidden_size=64)
    assert experts_label(list(model.weights.values())) == "8x79K"
    assert experts_label(list(random_model("llama").weights.values())) == ""


@pytest.mark.parametrize(
    ("model_type", "overrides", "what"),
    [
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob False"),
        ("qwen2_moe", {"norm_topk_prob": True}, "norm_topk_prob True"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "layers without experts"),
        ("qwen2_moe", {"decoder_sparse_step": 2}, "layers without experts"),
        ("mixtral", {"sliding_window": 8}, "sliding_window 8"),
    ],
)
def test_what_gguf_cannot_say(
    model_type: str, overrides: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=what):
        get_format("gguf").write(
            random_model(model_type, **overrides), tmp_path / "m.gguf", WriteOptions()
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_gguf_files_without_our_config(model_type: str, tmp_path: Path) -> None:
    model = random_model(model_type)
    get_format("gguf").write(model, tmp_path / "a.gguf", WriteOptions())
    found = read(tmp_path / "a.gguf")
    assert not found.warnings
    pairs = dict(found.metadata["gguf"])
    del pairs["halfbyte.config"]
    pairs["general.name"] = typed("another")
    stripped = replace(found, metadata={"gguf": pairs})
    get_format("gguf").write(stripped, tmp_path / "b.gguf", WriteOptions())
    again = read(tmp_path / "b.gguf")
    assert again.architecture == model_type
    keys = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
    for key in (*keys, "shared_expert_intermediate_size", "hidden_size", "head_dim"):
        assert again.config.get(key) == model.config.get(key), key


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"num_experts": 0}, "num_experts is 0"),
        ({"num_experts": 4096}, "num_experts is 4096"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, at most num_experts 8"),
        ({"mlp_only_layers": "all"}, "mlp_only_layers is 'all', a list of layers"),
        ({"mlp_only_layers": [-1]}, "mlp_only_layers is -1"),
        ({"norm_topk_prob": 1}, "norm_topk_prob is 1"),
    ],
)
def test_broken_configs(changes: dict[str, Any], rule: str) -> None:
    architecture = get_architecture("qwen3_moe")
    with pytest.raises(FormatError, match=rule):
        architecture.canonical_config({**architecture.EXAMPLE, **changes})


def test_an_expert_beyond_the_config_is_kept_unused() -> None:
    architecture, config, weights = pieces()
    name = "model.layers.0.mlp.experts.8.up_proj.weight"
    extra = weights["model.layers.0.mlp.experts.7.up_proj.weight"].renamed(name)
    found = with_stacked_experts({**weights, name: extra}, architecture, config)
    assert name in found


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_folders_and_files_quantize_alike(model_type: str, tmp_path: Path) -> None:
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size"), 256) | {
        "shared_expert_intermediate_size": 256
    }
    model = random_model(model_type, **sizes)
    get_format("hf").write(model, tmp_path / "folder", WriteOptions())
    get_format("gguf").write(model, tmp_path / "plain.gguf", WriteOptions())
    rng, entries = np.random.default_rng(4), {}
    for name, tensor in read(tmp_path / "plain.gguf").weights.items():
        if name.startswith("blk.") and len(tensor.shape) > 1:
            matrices = int(np.prod(tensor.shape[:-2], dtype=int))
            sums = rng.standard_normal((matrices, tensor.columns)).astype(np.float32) ** 2
            entries[name] = ImportanceEntry(sums, rng.integers(0, 50, matrices))
    write_importance(ImportanceMatrix(entries, ("text",), 3), tmp_path / "matrix.gguf")
    found = []
    for source in ("folder", "plain.gguf"):
        target = tmp_path / f"{source}-q.gguf"
        report = quantize(
            tmp_path / source, target, type="Q4_K_M", imatrix=tmp_path / "matrix.gguf", threads=1
        )
        assert sum(t.values for t in report.tensors) == sum(t.size for t in model.weights.values())
        found.append(read(target).by_key())
    for key, tensor in found[0].items():
        assert tensor.encoding == found[1][key].encoding
        same = tensor.read()["data"], found[1][key].read()["data"]
        np.testing.assert_array_equal(*(part.view(np.uint8) for part in same), err_msg=str(key))


def test_a_report_counts_the_pieces(tmp_path: Path) -> None:
    model = random_model("mixtral")
    get_format("gguf").write(model, tmp_path / "a.gguf", WriteOptions())
    report = convert(tmp_path / "a.gguf", tmp_path / "folder")
    assert sum(t.values for t in report.tensors) == sum(t.size for t in model.weights.values())
    assert sum(t.source_name == "blk.1.ffn_up_exps.weight" for t in report.tensors) == 4


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"expert_count": 3}, "has shape"),
        ({"expert_count": 2**31 - 1}, "num_experts is 2147483647"),
        ({"expert_count": "four"}, "STRING 'four', an integer of at least 0"),
        ({"expert_count": 0}, "missing"),
        ({"expert_used_count": 9}, "num_experts_per_tok is 9"),
        ({"expert_used_count": 0}, "expert_used_count' is UINT32 0"),
        ({"expert_used_count": None}, "expert_used_count' is missing"),
    ],
    ids=str,
)
def test_broken_gguf_keys(changes: dict[str, Any], rule: str, tmp_path: Path) -> None:
    get_format("gguf").write(random_model("mixtral"), tmp_path / "a.gguf", WriteOptions())
    found = read(tmp_path / "a.gguf")
    pairs = dict(found.metadata["gguf"])
    for key, value in changes.items():
        del pairs[f"llama.{key}"]
        if value is not None:
            pairs[f"llama.{key}"] = typed(value)
    broken = replace(found, metadata={"gguf": pairs})
    get_format("gguf").write(broken, tmp_path / "b.gguf", WriteOptions())
    with pytest.raises(FormatError, match=rule):
        read(tmp_path / "b.gguf")
