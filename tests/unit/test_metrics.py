"""Metrics against figures worked out by hand or by plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from halfbyte.errors import GateError, HalfbyteError
from halfbyte.verification.gates import Gate, judge, require_figures
from halfbyte.verification.language_model import TokenFigures, chunk_tokens, compare
from halfbyte.verification.metrics import (
    METRICS,
    agreement,
    kl_divergence,
    output_error,
    perplexity,
    probability_change,
)
from halfbyte.verification.metrics.log_probabilities import log_softmax, stored_log_probabilities
from halfbyte.verification.outputs import worst
from halfbyte.verification.report import VerifyReport


def test_log_softmax_sums_to_one_and_survives_large_logits():
    logits = np.array([[1e4, 1e4, -1e4], [0.0, 1.0, 2.0]], np.float32)
    result = log_softmax(logits)
    assert np.allclose(np.exp(result).sum(axis=1), 1.0, atol=1e-12)
    assert result[0, 0] == pytest.approx(-math.log(2), abs=1e-12)


def test_kl_divergence_of_two_coins():
    first = np.log(np.array([[0.5, 0.5]]))
    second = np.log(np.array([[0.25, 0.75]]))
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert kl_divergence.per_token(first, second)[0] == pytest.approx(expected, rel=1e-12)
    assert kl_divergence.per_token(first, first)[0] == 0.0


def test_kl_divergence_ignores_tokens_the_reference_rules_out():
    first = np.array([[0.0, -np.inf]])
    second = np.log(np.array([[0.5, 0.5]]))
    assert kl_divergence.per_token(first, second)[0] == pytest.approx(math.log(2))


def test_kl_summary_interpolates_percentiles():
    found = kl_divergence.summarize(np.arange(101, dtype=np.float64))
    assert found == {"mean_kl": 50.0, "median_kl": 50.0, "p99_kl": 99.0, "max_kl": 100.0}


def test_agreement_takes_the_first_of_equal_logits():
    first = np.array([[1.0, 1.0], [0.0, 2.0]], np.float32)
    second = np.array([[3.0, 1.0], [5.0, 2.0]], np.float32)
    assert agreement.per_token(first, second).tolist() == [True, False]
    assert agreement.summarize(np.array([True, False])) == {"top1_agreement": 0.5}


def test_perplexity_and_its_errors():
    reference = np.array([1.0, 3.0])
    candidate = np.array([2.0, 4.0])
    found = perplexity.summarize(reference, candidate)
    assert found["ppl_reference"] == pytest.approx(math.exp(2))
    assert found["ppl_reference_error"] == pytest.approx(math.exp(2) * 1.0)
    assert found["ppl_ratio"] == pytest.approx(math.e)
    assert found["ppl_ratio_error"] == 0.0
    assert found["ppl_increase"] == pytest.approx(math.e - 1)


def test_perplexity_of_one_token_has_no_error():
    assert perplexity.summarize(np.array([1.0]), np.array([1.0]))["ppl_candidate_error"] == 0.0


def test_probability_change():
    found = probability_change.summarize(np.log([0.5, 0.5]), np.log([0.4, 0.8]))
    assert found["mean_probability_change"] == pytest.approx(0.1)
    assert found["rms_probability_change"] == pytest.approx(math.sqrt((0.01 + 0.09) / 2))


def test_output_error():
    found = output_error.summarize(np.array([3.0, 4.0]), np.array([3.0, 5.0]))
    assert found["max_abs_error"] == 1.0
    assert found["max_rel_error"] == 0.25
    assert found["cosine"] == pytest.approx(29 / (5 * math.sqrt(34)))


@pytest.mark.parametrize(
    ("first", "second", "cosine", "relative"),
    [
        (np.zeros(0), np.zeros(0), 1.0, 0.0),
        (np.zeros(2), np.zeros(2), 1.0, 0.0),
        (np.zeros(2), np.ones(2), 0.0, math.inf),
    ],
)
def test_output_error_of_zeros(first, second, cosine, relative):
    found = output_error.summarize(first, second)
    assert (found["cosine"], found["max_rel_error"]) == (cosine, relative)


def test_gates_bound_from_the_right_side():
    measured = {"mean_kl": 0.01, "top1_agreement": 0.95}
    gates = judge({"mean_kl": 0.02, "top1_agreement": 0.99}, measured)
    assert [gate.passed for gate in gates] == [True, False]
    assert gates[1].to_json() == {
        "metric": "top1_agreement",
        "limit": 0.99,
        "measured": 0.95,
        "passed": False,
    }
    assert not Gate("mean_kl", 1.0, math.nan).passed


def test_a_gate_on_a_missing_figure_names_the_figures_there_are():
    with pytest.raises(HalfbyteError, match=r"gate cosine: .* it has mean_kl"):
        require_figures({"cosine": 0.9}, of_outputs=False)
    with pytest.raises(HalfbyteError, match=r"gate mean_kl: .* it has cosine"):
        require_figures({"cosine": 0.9, "mean_kl": 0.1}, of_outputs=True)
    require_figures({"mean_kl": 0.1, "ppl_increase": 0.1}, of_outputs=False)


def test_report_raises_for_the_failed_gate():
    gates = [Gate("mean_kl", 0.02, 0.01), Gate("top1_agreement", 0.99, 0.5)]
    report = VerifyReport("a", "b", {"mean_kl": 0.01}, gates=gates)
    assert not report.passed
    with pytest.raises(GateError, match=r"top1_agreement: measured 0\.5, limit 0\.99") as caught:
        report.raise_if_failed()
    assert caught.value.exit_code == 3
    VerifyReport("a", "b").raise_if_failed()


def test_chunks_drop_the_tail_and_begin_with_bos():
    table = chunk_tokens(list(range(10)), 4, None, 99)
    assert table.tolist() == [[99, 1, 2, 3], [99, 5, 6, 7]]
    assert chunk_tokens(list(range(10)), 4, 1, None).tolist() == [[0, 1, 2, 3]]


def test_chunks_need_enough_text():
    with pytest.raises(HalfbyteError, match="text has 3 tokens, one chunk needs 4"):
        chunk_tokens([1, 2, 3], 4, None, None)
    with pytest.raises(HalfbyteError, match="at least 4"):
        chunk_tokens([1, 2, 3], 2, None, None)


def test_figures_equal_a_plain_loop():
    generator = np.random.default_rng(3)
    first = generator.standard_normal((40, 17)).astype(np.float32)
    second = (first + 0.1 * generator.standard_normal((40, 17))).astype(np.float32)
    following = generator.integers(0, 17, 40)
    figures = TokenFigures()
    figures.add(first[:25], second[:25], following[:25])
    figures.add(first[25:], second[25:], following[25:])
    found = figures.summarize()
    divergences = []
    for a, b in zip(first.astype(np.float64), second.astype(np.float64), strict=True):
        p, q = np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()
        divergences.append(sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)))
    assert found["tokens"] == 40
    assert found["mean_kl"] == pytest.approx(np.mean(divergences), rel=1e-10)
    assert found["max_kl"] == pytest.approx(max(divergences), rel=1e-10)
    assert found["top1_agreement"] == np.mean(first.argmax(1) == second.argmax(1))


def test_stored_log_probabilities_follow_the_file_format():
    logits = np.array([[0.0, -1.0, -16.5, -40.0], [2.0, 2.0, 2.0, 2.0]], np.float32)
    total = math.log(1 + math.exp(-1) + math.exp(-16.5) + math.exp(-40))
    found = stored_log_probabilities(logits)
    assert found[0, 0] == pytest.approx(-total, abs=1e-12)
    assert found[0, 1] == pytest.approx(-1 - total, abs=16 / 65535 / 2)
    assert found[0, 2] == found[0, 3] == pytest.approx(-16 - total, abs=1e-12)
    assert found[1] == pytest.approx([-math.log(4)] * 4)


def test_storage_leaves_small_probabilities_out_of_the_divergence():
    first = np.array([[0.0, -16.5]])
    second = np.array([[-0.25, -1.0]])
    assert kl_divergence.per_token(first, second, floor=-16.0)[0] == 0.25
    assert kl_divergence.per_token(first, second)[0] != 0.25


def test_storage_raises_what_the_reference_rules_out():
    logits = np.array([[30.0, 0.0]], np.float32)
    exact, stored = TokenFigures(), TokenFigures("16-bit")
    for figures in (exact, stored):
        figures.add(logits, logits, np.array([1]))
    assert exact.summarize()["ppl_reference"] == pytest.approx(math.exp(30))
    assert stored.summarize()["ppl_reference"] == pytest.approx(math.exp(16))
    assert stored.summarize()["ppl_candidate"] == pytest.approx(math.exp(30))


def test_every_metric_has_a_module_and_a_side():
    from importlib import import_module

    for module, side in METRICS.values():
        assert import_module(module).summarize
        assert side in ("min", "max")


def test_a_hopeless_model_has_an_infinite_perplexity():
    found = perplexity.summarize(np.array([1.0, 2.0]), np.array([1000.0, 3000.0]))
    assert found["ppl_candidate"] == found["ppl_ratio"] == math.inf
    assert not Gate("ppl_increase", 1e300, found["ppl_increase"]).passed


def test_the_worst_of_all_outputs_is_nan():
    good = {"cosine": 1.0, "max_abs_error": 0.5, "max_rel_error": 0.25}
    bad = dict.fromkeys(good, math.nan)
    for entries in ([good, bad], [bad, good]):
        assert all(math.isnan(value) for value in worst(entries).values())
    assert worst([good, {"cosine": 0.5, "max_abs_error": 0.125, "max_rel_error": 1.0}]) == {
        "cosine": 0.5,
        "max_abs_error": 0.5,
        "max_rel_error": 1.0,
    }


def test_infinite_logits_fail_without_a_warning():
    class Given:
        def __init__(self, value: float) -> None:
            self.value = value

        def reset(self) -> None:
            pass

        def run(self, inputs):
            logits = np.zeros((1, len(inputs["output_positions"]), 3), np.float32)
            logits[..., 1] = self.value
            return {"logits": logits}

    chunks = np.zeros((2, 8), np.int64)
    found = compare(Given(1.0), Given(math.inf), chunks)
    assert math.isnan(found["mean_kl"]) and math.isnan(found["ppl_candidate"])
    assert found["tokens"] == 6
    exact = compare(Given(1.0), Given(1.0), chunks)
    assert exact["ppl_reference"] == pytest.approx(2 + math.e)
