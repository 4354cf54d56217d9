"""AWQ and SmoothQuant beside plain code written from the papers, and what they gain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.quant.calibration.statistics import InputStatistics
from halfbyte.quant.solver import get_solver
from halfbyte.quant.transforms import (
    LinearInput,
    TransformOptions,
    get_transform,
)
from halfbyte.quant.transforms.awq import Awq, candidates
from halfbyte.quant.transforms.smoothquant import SmoothQuant
from support.layer_inputs import layer_inputs, logits, statistics_of, token_ids
from support.random_models import random_model

TYPES = ["int4-g32", "int3-g32-asym", "int4", "int3-g128", "Q4_0", "Q4_K", "IQ4_NL", "int8-g32"]


def loud_rows(count: int, columns: int, seed: int) -> NDArray[np.float32]:
    """Return correlated rows of which a few channels are large."""
    generator = np.random.default_rng(seed)
    mixed = generator.standard_normal((count, columns // 2))
    rows = mixed @ generator.standard_normal((columns // 2, columns)) / np.sqrt(columns / 2)
    rows += 0.3 * generator.standard_normal(rows.shape)
    rows[:, generator.choice(columns, 4, replace=False)] *= 20
    return np.asarray(rows, np.float32)


class Site:
    """x * scale into two linear layers, and rows of x * scale that they meet."""

    def __init__(self, columns: int = 256, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.graph = graph = Graph()
        x = graph.add_input("x", "float32", (1, 7, columns))
        scale = graph.add_constant(
            tensor_from_array("scale", generator.uniform(0.5, 1.5, columns).astype(np.float32))
        )
        self.x = graph.add(
            "RMSNormalization", [x, scale], name="normed", dtype="float32",
            shape=(1, 7, columns), since_version=23, axis=-1, epsilon=1e-6,
        )  # fmt: skip
        for name, rows in (("first", 48), ("second", 80)):
            values = (0.1 * generator.standard_normal((rows, columns))).astype(np.float32)
            weight = graph.add_constant(tensor_from_array(name, values))
            graph.outputs.append(
                graph.add("Linear", [self.x, weight], dtype="float32", shape=(1, 7, rows),
                          domain=HALFBYTE_DOMAIN)
            )  # fmt: skip
        self.rows = loud_rows(300, columns, seed + 1)
        self.input = LinearInput(self.x, statistics_of(self.rows))

    def weight(self, name: str) -> NDArray[np.float32]:
        """Return a weight [out, in]."""
        return self.graph.constants[name].float32()

    def fold(self, transform: Any, encoding: Encoding, **options: Any) -> Any:
        """Return what a transform makes of the site."""
        encodings = {"first": encoding, "second": encoding}
        made = TransformOptions(**options)
        return transform.fold(self.graph, [self.input], encodings, made, get_solver())


def rounded(encoding: Encoding, rows: NDArray[np.float32], importance: Any) -> NDArray[np.float32]:
    """Return what plain rounding makes of rows; ggml types look at the importance."""
    weights = None if encoding.name.startswith("int") else importance
    return np.asarray(encoding.decode(encoding.encode(rows, weights), rows.shape[1]))


def output_error(
    site: Site, encoding: Encoding, divisor: NDArray[np.float32], names: Any = ("first", "second")
) -> float:
    """Return the summed squared error of the outputs over the site's rows."""
    importance = (np.square(site.rows, dtype=np.float64).sum(axis=0)).astype(np.float32)
    total = 0.0
    for name in names:
        weight = site.weight(name)
        wrong = rounded(encoding, weight * divisor, importance / divisor**2) / divisor - weight
        total += float(np.square(site.rows.astype(np.float64) @ wrong.T.astype(np.float64)).sum())
    return total


def paper_divisors(site: Site, encoding: Encoding, grid: int) -> list[NDArray[np.float32]]:
    """Return all divisors of the search, as the paper's code writes them."""
    x = np.abs(site.rows.astype(np.float64)).mean(axis=0)
    size = getattr(encoding, "group_size", 32) or site.rows.shape[1]
    if encoding.grid is not None:
        size = encoding.grid.group_size or site.rows.shape[1]
    weight = np.concatenate([site.weight("first"), site.weight("second")]).astype(np.float64)
    grouped = np.abs(weight).reshape(len(weight), -1, size)
    w = (grouped / grouped.max(axis=2, keepdims=True)).reshape(weight.shape).mean(axis=0)
    found = []
    for duo in (False, True):
        for step in range(grid):
            ratio = step / grid
            s = x**ratio / (w ** (1 - ratio) + 1e-4) if duo else x**ratio
            s = np.maximum(s, 1e-4)
            found.append((s / np.sqrt(s.max() * s.min())).astype(np.float32))
    return found


@pytest.mark.parametrize("name", TYPES)
def test_the_search_finds_the_papers_best(name: str) -> None:
    site, encoding = Site(), encoding_from_name(name)
    folded = site.fold(Awq(), encoding, clip=False)
    found = folded.divisors["normed"]
    errors = [output_error(site, encoding, s) for s in paper_divisors(site, encoding, 20)]
    own = output_error(site, encoding, found)
    assert own <= min(errors) * (1 + 1e-4)
    plain = output_error(site, encoding, np.ones(256, np.float32))
    assert own < plain * (0.95 if name.startswith("int") else 0.999)


def test_all_of_the_papers_divisors_are_tried() -> None:
    site, encoding = Site(), encoding_from_name("int4-g32")
    x = np.abs(site.rows.astype(np.float64)).mean(axis=0)
    weight = np.concatenate([site.weight("first"), site.weight("second")])
    grouped = np.abs(weight).reshape(len(weight), -1, 32)
    share = (grouped / grouped.max(axis=2, keepdims=True)).reshape(weight.shape).mean(axis=0)
    tried = list(candidates(x, share.astype(np.float64), 20))
    for expected in paper_divisors(site, encoding, 20)[1:]:
        assert any(np.allclose(found, expected, rtol=1e-4) for found in tried)


def test_the_norm_takes_what_the_weights_give() -> None:
    site = Site()
    folded = site.fold(Awq(), encoding_from_name("int4-g32"), clip=False)
    divisor = folded.divisors["normed"]
    scale = site.weight("scale").reshape(-1)
    assert np.array_equal(folded.weights["scale"].float32().reshape(-1), scale / divisor)
    for name in ("first", "second"):
        assert np.array_equal(folded.weights[name].float32(), site.weight(name) * divisor)


def test_clipping_lowers_the_error_of_each_groups_part() -> None:
    site, encoding = Site(), encoding_from_name("int3-g128")
    whole, plain = (site.fold(Awq(), encoding, clip=clip) for clip in (True, False))
    assert np.array_equal(whole.divisors["normed"], plain.divisors["normed"])
    rows = site.rows / whole.divisors["normed"]
    for name in ("first", "second"):
        aim = plain.weights[name].float32()
        before = rounded(encoding, aim, None) - aim
        after = rounded(encoding, whole.weights[name].float32(), None) - aim
        for start in (0, 128):
            part = slice(start, start + 128)
            errors = [
                np.square(rows[:, part] @ wrong[:, part].T).sum(axis=0) for wrong in (before, after)
            ]
            assert (errors[1] <= errors[0] * (1 + 1e-4)).all()
            assert errors[1].sum() < 0.97 * errors[0].sum()


def best_limit(rows: NDArray[Any], aim: NDArray[Any], encoding: Encoding) -> list[float]:
    """Return the best of AWQ's limits for each row of one group, tried one by one."""
    found = []
    for values in aim:
        errors = []
        for step in range(10):
            top = np.abs(values).max() * np.float32(1 - step / 20)
            inside = np.clip(values, -top, top)[None]
            wrong = encoding.decode(encoding.encode(inside), inside.shape[1]) - values
            errors.append(float(np.square(rows.astype(np.float64) @ wrong[0]).sum()))
        found.append(min(errors))
    return found


def test_clipping_takes_the_papers_limits() -> None:
    site, encoding = Site(128), encoding_from_name("int3-g128")
    folded = site.fold(Awq(), encoding, grid=1)
    divisor = folded.divisors.get("normed", np.ones(128, np.float32))
    rows, aim = site.rows / divisor, site.weight("first") * divisor
    wrong = rounded(encoding, folded.weights["first"].float32(), None) - aim
    own = np.square(rows.astype(np.float64) @ wrong.T.astype(np.float64)).sum(axis=0)
    np.testing.assert_allclose(own, best_limit(rows, aim, encoding), rtol=1e-3)


def test_ggml_types_are_not_clipped() -> None:
    site = Site()
    whole, plain = (
        site.fold(Awq(), encoding_from_name("Q4_K"), clip=clip) for clip in (True, False)
    )
    for name in ("first", "second"):
        assert np.array_equal(whole.weights[name].float32(), plain.weights[name].float32())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0])
def test_smoothquant_is_the_papers_formula(alpha: float) -> None:
    site = Site()
    folded = site.fold(SmoothQuant(), encoding_from_name("int8"), alpha=alpha)
    weight = np.concatenate([site.weight("first"), site.weight("second")])
    expected = np.abs(site.rows).max(axis=0) ** alpha / np.abs(weight).max(axis=0) ** (1 - alpha)
    np.testing.assert_allclose(folded.divisors["normed"], expected, rtol=1e-6)


def test_smoothquant_helps_int8_activations() -> None:
    site = Site()
    encoding = encoding_from_name("int8")
    divisor = site.fold(SmoothQuant(), encoding).divisors["normed"]

    def error(divisor: NDArray[np.float32]) -> float:
        rows = site.rows / divisor
        step = np.abs(rows).max(axis=1, keepdims=True) / 127
        held = np.rint(rows / step) * step
        total = 0.0
        for name in ("first", "second"):
            weight = site.weight(name)
            made = rounded(encoding, weight * divisor, None)
            total += float(np.square(held @ made.T - site.rows @ weight.T).sum())
        return total

    assert error(divisor) < 0.3 * error(np.ones(256, np.float32))


@pytest.mark.parametrize("transform", ["awq", "smoothquant"])
def test_dead_channels_and_zero_groups_are_safe(transform: str) -> None:
    site = Site()
    site.rows[:, 32:64] = 0
    for name in ("first", "second"):
        site.graph.constants[name].parts["data"].array[:, 64:96] = 0  # type: ignore[attr-defined]
    site.input = LinearInput(site.x, statistics_of(site.rows))
    with np.errstate(all="raise", under="ignore"):
        folded = site.fold(get_transform(transform), encoding_from_name("int4-g32"))
    divisor = folded.divisors["normed"]
    assert np.isfinite(divisor).all() and (divisor > 0).all()
    assert (divisor[32:64] == 1).all()
    for tensor in folded.weights.values():
        assert np.isfinite(tensor.float32()).all()


def test_without_a_hessian_the_squares_serve() -> None:
    site, encoding = Site(), encoding_from_name("int4-g32")
    statistics = site.input.statistics
    assert isinstance(statistics, InputStatistics)
    site.input = LinearInput(site.x, statistics.light())
    divisor = site.fold(Awq(), encoding).divisors["normed"]
    assert output_error(site, encoding, divisor) < output_error(
        site, encoding, np.ones(256, np.float32)
    )


def test_a_sample_of_rows_serves() -> None:
    site, encoding = Site(), encoding_from_name("int4-g32")
    divisor = site.fold(Awq(), encoding, search_rows=16).divisors["normed"]
    assert output_error(site, encoding, divisor) < 0.95 * output_error(
        site, encoding, np.ones(256, np.float32)
    )


def layer_encodings(model: Model, encoding: Encoding) -> dict[str, Encoding]:
    """Return the encoding for the linear weights of the layers."""
    return {
        node.inputs[1].name: encoding
        for node in model.graph.nodes
        if node.op in ("Linear", "ExpertLinear") and node.layer is not None and node.inputs[1]
        and not str(getattr(node.inputs[1].constant, "role", "")).endswith("router")
    }  # fmt: skip


@pytest.mark.parametrize("transform", ["awq", "smoothquant"])
@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "mixtral", "gpt2"])
def test_a_layers_function_stays(name: str, transform: str) -> None:
    model = random_model(name)
    ids = token_ids(model)
    encodings = layer_encodings(model, encoding_from_name("int4-g32"))
    folded = get_transform(transform).fold(  # type: ignore[union-attr]
        model.graph, layer_inputs(model, ids), encodings, TransformOptions(clip=False), get_solver()
    )
    assert len(folded.divisors) >= 2
    changed = model.with_weights({**model.weights, **folded.weights})
    expected, found = logits(model, ids), logits(changed, ids)
    assert not np.array_equal(expected, found)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_each_expert_has_divisors_of_its_own() -> None:
    model = random_model("mixtral")
    inputs = layer_inputs(model, token_ids(model, 3))
    encodings = layer_encodings(model, encoding_from_name("int4-g32"))
    folded = SmoothQuant().fold(model.graph, inputs, encodings, TransformOptions(), get_solver())
    divisors = folded.divisors["layers.0.feed_forward.product"]
    assert divisors.shape == (4, 96)
    each = next(
        entry.statistics for entry in inputs
        if entry.x.name == "layers.0.feed_forward.product"
    )  # fmt: skip
    assert isinstance(each, list)
    for own, statistics in zip(divisors, each, strict=True):
        assert (own == 1).all() == (statistics is None)


def test_any_number_of_threads_gives_the_same_bytes() -> None:
    from halfbyte.kernels import cpu

    if not cpu.available():
        pytest.skip("the CPU kernels are not built")
    made = []
    for threads in (1, 4):
        site = Site()
        folded = Awq().fold(
            site.graph, [site.input],
            {"first": encoding_from_name("int3-g32"), "second": encoding_from_name("Q4_K")},
            TransformOptions(), get_solver(threads=threads),
        )  # fmt: skip
        made.append({name: tensor.float32().tobytes() for name, tensor in folded.weights.items()})
    assert made[0] == made[1]
