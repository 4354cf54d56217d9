"""Tables of a verification."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from halfbyte.verification.gates import Gate
from halfbyte.verification.report import VerifyReport
from halfbyte.verification.reports.terminal import verify_report

FIGURES = {
    **{"tokens": 5100, "mean_kl": 0.0125, "median_kl": 0.01, "p99_kl": 0.125, "max_kl": 0.5},
    **{"top1_agreement": 0.9375, "rms_probability_change": 0.0125},
    **{"ppl_reference": 12.5, "ppl_reference_error": 0.25},
    **{"ppl_candidate": 13.5, "ppl_candidate_error": 0.5},
    **{"ppl_ratio": 1.08, "ppl_ratio_error": 0.001},
}


def shown(report: VerifyReport) -> str:
    stream = io.StringIO()
    Console(file=stream, width=110, markup=False).print(verify_report(report))
    return " ".join(word for word in stream.getvalue().split() if word not in "│┃")


@pytest.mark.parametrize(
    "words",
    [
        "cand.gguf against ref.gguf",
        "tokens judged 5,100",
        "mean KL divergence 0.012500 nats",
        "99th percentile KL 0.125000 nats",
        "top-1 agreement 93.75%",
        "RMS probability change 1.250%",
        "perplexity, reference 12.5000 ± 0.2500",
        "perplexity, candidate 13.5000 ± 0.5000",
        "perplexity ratio 1.080000 ± 0.001000",
    ],
)
def test_language_model(words):
    text = shown(VerifyReport("ref.gguf", "cand.gguf", FIGURES))
    assert words in text
    assert "gate" not in text


def test_outputs():
    entry = {"name": "pooled", "cosine": 0.75, "max_abs_error": 0.5, "max_rel_error": 0.25}
    text = shown(VerifyReport("a", "b", outputs=[entry, {**entry, "name": "last"}]))
    assert "pooled 0.750000000 5.000e-01 2.500e-01" in text
    assert "last 0.750000000" in text


def test_gates():
    gates = [Gate("mean_kl", 0.02, 0.0125), Gate("top1_agreement", 0.99, 0.9375)]
    text = shown(VerifyReport("a", "b", FIGURES, gates=gates))
    assert "mean_kl 0.02 0.0125 passed" in text
    assert "top1_agreement 0.99 0.9375 FAILED" in text


def test_json_of_both_kinds():
    body = VerifyReport("a", "b", FIGURES, gates=[Gate("mean_kl", 1.0, 0.5)], seconds=2.0).to_json()
    assert body.items() >= FIGURES.items()
    assert (body["passed"], body["seconds"], "outputs" in body) == (True, 2.0, False)
    entry = {"name": "x", "cosine": 1.0, "max_abs_error": 0.0, "max_rel_error": 0.0}
    assert VerifyReport("a", "b", outputs=[entry]).to_json()["outputs"] == [entry]
