"""The calibrated driver: what weights are rounded to, over which inputs, and how it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters import get_format
from halfbyte.converters.architectures import ARCHITECTURES
from halfbyte.errors import HalfbyteError, UnsupportedError
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Value
from halfbyte.ir.model import Model
from halfbyte.ir.profile import MATRIX
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.quant.calibrated import CalibrationOptions, CalibrationReport, quantize_calibrated
from halfbyte.quant.calibration.batches import Batches, input_batches, token_batches
from halfbyte.quant.calibration.gather import collect
from halfbyte.quant.calibration.rounding import few_tokens
from halfbyte.quant.method import MethodOptions, parse_method
from halfbyte.quant.plan import Plan, apply_plan, make_plan
from halfbyte.quant.solver_reference import ReferenceSolver
from halfbyte.runtime.session import Session
from support import rounding_by_rtn
from support.calibration import linears, observed, random_batches
from support.random_models import random_model

SOLVER = ReferenceSolver()
TYPE = "Q4_0"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    return rounding_by_rtn.install(monkeypatch)


def planned(model: Model, type_name: str = TYPE) -> Plan:
    held = "gguf" if type_name == TYPE else "hb"
    return make_plan(model, get_format(held).profile(), type_name)


def run(
    model: Model,
    batches: Batches | None,
    folder: Path,
    method: str = "gptq",
    type_name: str = TYPE,
    options: MethodOptions | None = None,
    **more: Any,
) -> tuple[Model, CalibrationReport]:
    asked = CalibrationOptions(folder, options or MethodOptions(), threads=1)
    chain = parse_method(method)
    return quantize_calibrated(
        model, planned(model, type_name), chain, batches, asked, SOLVER, **more
    )


def stored(model: Model) -> dict[str, tuple[str, list[bytes]]]:
    return {
        name: (str(t.encoding), [part.tobytes() for part in t.read().values()])
        for name, t in model.weights.items()
    }


def with_rounded(model: Model, rounded: Model, names: Any) -> Model:
    chosen = {n: rounded.weights[n] if n in names else t for n, t in model.weights.items()}
    return model.with_weights(chosen)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_weight_is_as_planned(
    model_type: str, tmp_path: Path, calls: list[dict[str, Any]]
) -> None:
    model = random_model(model_type, seed=2)
    batches = random_batches(model, count=8, length=40)
    made, report = run(model, batches, tmp_path)
    plan = planned(model)
    assert stored(made) == stored(apply_plan(model, plan)), "plain rounding, whatever the way"
    rounded = [d.tensor.name for d in plan.decisions if d.is_search and d.target.is_quantized]
    assert [weight.name for weight in report.weights] == rounded
    for weight in report.weights:
        known = weight.name in linears(model)
        assert (weight.error is not None) == known == (weight.method == "gptq"), weight
        assert (weight.tokens > 0) == known
        assert known or "no linear layer" in weight.note
    assert calls and report.samples == 8
    results = Session(made).run(dict(batches.runs[0]))
    assert all(np.isfinite(array).all() for array in results.values())


@pytest.mark.parametrize("model_type", ["llama", "qwen2_moe", "gpt2", "bert"])
@pytest.mark.parametrize("sequential", [True, False])
def test_inputs_are_those_of_the_model_so_far(
    model_type: str, sequential: bool, tmp_path: Path, calls: list[dict[str, Any]]
) -> None:
    model = random_model(model_type, seed=2)
    batches = random_batches(model, count=4, length=24)
    made, report = run(model, batches, tmp_path, options=MethodOptions(true_sequential=sequential))
    solved = [weight.name for weight in report.weights if weight.method == "gptq"]
    order = [name for name in solved if len(model.weights[name].shape) == 2]
    untouched = [w.name for w in report.weights if w.name not in linears(model)]
    squares = {weight_key(call["weight"]): call["statistics"] for call in calls}
    for name in order[:: max(1, len(order) // 7)]:
        statistics = squares[weight_key(model.weights[name].float32())]
        before = [n for n in earlier(model, name, sequential) if n in solved]
        partly = with_rounded(model, made, [*untouched, *before])
        rows = observed(partly, batches).rows[name]
        kept = [
            x if m is None or len(x) != m.size else x[m.reshape(-1)]
            for x, m in zip(rows, batches.masks, strict=True)
        ]
        wide = np.concatenate(kept).astype(np.float64)
        np.testing.assert_allclose(statistics.squares, (wide**2).sum(0), rtol=1e-3, err_msg=name)


def weight_key(rows: Any) -> bytes:
    return np.ascontiguousarray(rows[:4]).tobytes()


def earlier(model: Model, name: str, sequential: bool) -> list[str]:
    """Return the weights that are rounded before the inputs of `name` are taken."""
    nodes = [n for n in model.graph.nodes if n.op in ("Linear", "ExpertLinear")]
    own = next(n for n in nodes if n.inputs[1] is not None and n.inputs[1].name == name)
    found = []
    for node in nodes:
        if node.inputs[0] is own.inputs[0] and node.inputs[2:] == own.inputs[2:]:
            break
        if node.inputs[0] is own.inputs[0] and node.op == own.op:
            break
        if sequential or node.layer != own.layer or node.layer is None:
            found.append(node.inputs[1].name)
    return found


def test_float_stream_runs_beside(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    model = random_model("llama", seed=2)
    batches = random_batches(model, count=4, length=24)
    made, _ = run(model, batches, tmp_path, "gptaq")
    name = "model.layers.1.mlp.down_proj.weight"
    wanted = np.concatenate(observed(model, batches).rows[name]).astype(np.float64)
    partly = with_rounded(model, made, set(model.weights) - {name})
    seen = np.concatenate(observed(partly, batches).rows[name]).astype(np.float64)
    key = weight_key(model.weights[name].float32())
    statistics = next(c["statistics"] for c in calls if weight_key(c["weight"]) == key)
    cross = (wanted - seen).T @ seen
    np.testing.assert_allclose(statistics.cross, cross, rtol=1e-3, atol=1e-3 * np.abs(cross).max())
    first = calls[0]["statistics"].cross
    assert np.abs(first).max() > 0, "the embedding was rounded before"


def test_experts_with_few_tokens_use_what_all_saw(
    tmp_path: Path, calls: list[dict[str, Any]]
) -> None:
    model = random_model("mixtral", seed=2)
    batches = random_batches(model, count=4, length=20)
    _, report = run(model, batches, tmp_path)
    found = {weight.name: weight for weight in report.weights if weight.experts}
    assert len(found) == 6
    for weight in found.values():
        limit = few_tokens(model.weights[weight.name].columns)
        scarce = sum(count < limit for count in weight.experts)
        assert sum(weight.experts) == weight.tokens == 160
        told = f"{scarce} of 4 experts saw fewer than {limit} tokens"
        assert (told in weight.note) == (scarce > 0)
    assert any("experts saw fewer" in weight.note for weight in found.values())
    assert any("experts saw fewer" in line for line in report.warnings)


def test_a_run_that_was_stopped_goes_on(
    tmp_path: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("qwen3_moe", seed=2)
    batches = random_batches(model, count=4, length=20)
    whole, journal, work = (tmp_path / name for name in ("whole", "journal", "work"))
    for folder in (whole, journal, work):
        folder.mkdir()
    made, report = run(model, batches, whole)
    total = len(calls)
    calls.clear()
    plain = rounding_by_rtn.solve

    def failing(*arguments: Any) -> Any:
        if len(calls) == total // 2:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(rounding_by_rtn, "solve", failing)
    with pytest.raises(KeyboardInterrupt):
        run(model, batches, work, journal=journal)
    monkeypatch.setattr(rounding_by_rtn, "solve", plain)
    done = len(calls)
    calls.clear()
    again, resumed = run(model, batches, work, journal=journal)
    assert 0 < len(calls) < total and len(calls) + done < total + 9
    assert stored(again) == stored(made)
    assert resumed.weights == report.weights


def test_saved_statistics_need_no_data(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    model = random_model("qwen2_moe", seed=2)
    batches = random_batches(model, count=6, length=40)
    saved = collect(model, batches, tmp_path / "stats.npz", SOLVER, threads=1)
    made, report = run(model, None, tmp_path, statistics=saved)
    assert stored(made) == stored(apply_plan(model, planned(model)))
    assert report.samples == 6
    assert any("statistics of the float model" in line for line in report.warnings)
    assert all(w.error is not None for w in report.weights if w.name in linears(model))
    with pytest.raises(HalfbyteError, match="neither calibration data nor statistics"):
        run(model, None, tmp_path)
    with pytest.raises(HalfbyteError, match="statistics of another model"):
        run(random_model("qwen2_moe", seed=3), None, tmp_path, statistics=saved)


def test_the_head_in_chunks_is_the_same(
    tmp_path: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("llama", seed=2, tie_word_embeddings=True)
    batches = random_batches(model)
    made, _ = run(model, batches, tmp_path)
    count = len(calls)
    monkeypatch.setattr("halfbyte.quant.calibration.rounding.CHUNK_BYTES", 64 * 4 * 50)
    again, _ = run(model, batches, tmp_path / "..", journal=fresh(tmp_path))
    assert len(calls) > 2 * count
    assert stored(made) == stored(again)


def fresh(folder: Path) -> Path:
    made = folder / "fresh"
    made.mkdir()
    return made


def test_large_and_infinite_activations_are_told(
    tmp_path: Path, calls: list[dict[str, Any]]
) -> None:
    model = random_model("llama", seed=2)
    name = "model.layers.1.post_attention_layernorm.weight"
    for size, fails in ((3e4, False), (2e38, True)):
        norm = model.weights[name]
        large = tensor_from_array(name, np.full(norm.shape, size, np.float32))
        other = model.with_weights({**model.weights, name: large.identified(norm.key)})
        batches = random_batches(other)
        if fails:
            with pytest.raises(HalfbyteError, match=r"layers.1.*inputs are infinite or NaN"):
                run(other, batches, tmp_path, type_name="Q8_0")
        else:
            _, report = run(other, batches, tmp_path)
            assert any("activations reach" in line for line in report.warnings)
            assert max(report.largest.values()) > 2e4


def test_stacks_of_experts_share_no_order(tmp_path: Path) -> None:
    model = random_model("mixtral")
    plan = make_plan(model, get_format("hb").profile(), "int4-g32-actorder")
    options = CalibrationOptions(tmp_path, threads=1)
    with pytest.raises(UnsupportedError, match="stack of experts by gptq .*supported: int4-g32$"):
        quantize_calibrated(
            model, plan, parse_method("gptq"), random_batches(model), options, SOLVER
        )


def test_weights_that_cannot_be_rounded_are_named(tmp_path: Path) -> None:
    model = random_model("llama", seed=2)
    name = "model.layers.1.mlp.up_proj.weight"
    broken = np.array(model.weights[name].float32())
    for value, told in ((np.nan, "NaN"), (1e30, "float16's range")):
        broken[3, 5] = value
        tensor = tensor_from_array(name, broken).identified(model.weights[name].key)
        other = model.with_weights({**model.weights, name: tensor})
        with pytest.raises(HalfbyteError, match=f"{name}.*{told}"):
            run(other, random_batches(model), tmp_path, method="gptq")


@pytest.mark.parametrize(("model_type", "searches"), [("bert", True), ("llama", False)])
def test_models_that_are_no_decoders_search_ranges_unless_told(
    model_type: str, searches: bool, tmp_path: Path
) -> None:
    model = random_model(model_type, seed=2)
    batches = random_batches(model, count=4, length=24)
    found = {}
    for asked in (None, False, True):
        options, folder = MethodOptions(group_search=asked), tmp_path / str(asked)
        folder.mkdir()
        made, _ = run(model, batches, folder, type_name="int3", options=options)
        found[asked] = stored(made)
    assert found[None] == found[searches] != found[not searches]


def test_progress_reaches_its_total(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    model = random_model("llama", seed=2)
    told: dict[str, int] = {"total": 0, "done": 0}

    def progress(total: int) -> Any:
        told["total"] = total
        return lambda steps: told.__setitem__("done", told["done"] + steps)

    batches = token_batches(np.zeros((3, 8), np.int64), run_tokens=8)
    run(model, batches, tmp_path, "gptaq", progress=progress)
    assert told["done"] == told["total"] == 2 * 9 * 3


def test_inputs_by_name(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    model = random_model("bert", seed=2)
    ids = np.ones((2, 5), np.int64)
    with pytest.raises(HalfbyteError, match="no input is named 'pixels'"):
        run(model, input_batches([{"input_ids": ids, "pixels": ids}]), tmp_path)
    _, report = run(replace(model), input_batches([{"input_ids": ids}]), tmp_path)
    assert all("only 10 rows" in w.note for w in report.weights if w.tokens == 10)


def plain_build(model: Model) -> Graph:
    """Return a graph of two products with a stored matrix and one inside a branch."""
    graph = Graph("plain")
    x = graph.add_input("x", "float32", ["n", 64])

    def constant(name: str) -> Value:
        return graph.add_constant(model.weights[name])

    up = graph.add("Linear", [x, constant("up")], domain=HALFBYTE_DOMAIN)
    act = graph.add("Relu", [up], since_version=14)
    down = graph.add("Linear", [act, constant("down")], domain=HALFBYTE_DOMAIN)
    inner = Graph("branch")
    given = inner.add_input("given", "float32", ["n", 64])
    held = inner.add_constant(model.weights["hidden"])
    inner.outputs = [inner.add("Linear", [given, held], domain=HALFBYTE_DOMAIN)]
    yes = graph.add_constant(tensor_from_array("yes", np.array(True)), fixed=True)
    branch = graph.add(
        "If", [yes, down], since_version=25, captures=1, then_branch=inner, else_branch=inner.copy()
    )
    graph.outputs = [branch]
    return graph


def test_plain_graphs_and_branches(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    generator = np.random.default_rng(3)
    weights = {}
    for name, shape in (("up", (96, 64)), ("down", (64, 96)), ("hidden", (32, 64))):
        values = generator.standard_normal(shape).astype(np.float32)
        weights[name] = replace(tensor_from_array(name, values), kind=MATRIX)
    model = Model(weights, build=plain_build)
    samples = [{"x": generator.standard_normal((n, 64)).astype(np.float32)} for n in (20, 50)]
    plan = make_plan(model, get_format("onnx").profile(), "int4-g32")
    made, report = quantize_calibrated(
        model, plan, parse_method("gptq"), input_batches(samples),
        CalibrationOptions(tmp_path, threads=1), SOLVER,
    )  # fmt: skip
    methods = {weight.name: (weight.method, weight.tokens) for weight in report.weights}
    assert methods == {"up": ("gptq", 70), "down": ("gptq", 70), "hidden": ("rtn", 0)}
    (result,) = Session(made).run(samples[0]).values()
    assert result.shape == (20, 32)
