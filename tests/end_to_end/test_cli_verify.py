"""`halfbyte verify`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import halfbyte
from halfbyte.errors import GateError
from halfbyte.ir.tensor import tensor_from_array
from support.model_folders import tiny_model, write_model
from support.random_models import random_model

FIGURES = {
    *("tokens", "mean_kl", "median_kl", "p99_kl", "max_kl", "top1_agreement"),
    *("ppl_reference", "ppl_candidate", "ppl_ratio", "ppl_ratio_error", "rms_probability_change"),
}


@pytest.fixture
def pair(models):
    """Arguments that verify the Q4_0 file against its source."""
    return (
        *("verify", models / "llama", models / "q4_0.gguf"),
        *("--data", models / "text.txt", "--context", 32),
    )


def test_json(cli, pair):
    found = cli(*pair, "--chunks", 3, "--json").json()
    assert found.keys() >= FIGURES
    assert found["tokens"] == 3 * 15
    assert (found["gates"], found["passed"]) == ([], True)
    assert 0 < found["median_kl"] < found["p99_kl"] <= found["max_kl"]
    ratio = found["ppl_candidate"] / found["ppl_reference"]
    assert found["ppl_ratio"] == pytest.approx(ratio)


@pytest.mark.parametrize("name", ["llama", "llama.gguf", "llama.hb"])
def test_a_model_equals_itself_in_every_format(name, cli, models):
    found = cli(
        *("verify", models / "llama", models / name, "--data", models / "text.txt"),
        *("--context", 32, "--chunks", 2, "--json"),
    ).json()
    assert found["max_kl"] < 1e-9
    assert found["top1_agreement"] == 1
    assert found["ppl_ratio"] == pytest.approx(1, abs=1e-6)


def test_all_chunks_of_the_shipped_text(cli, models):
    shared = ("verify", models / "llama", models / "llama.gguf", "--context", 64, "--json")
    assert cli(*shared, "--chunks", 2).json()["tokens"] == 2 * 31


def test_table(cli, pair):
    found = cli(*pair, "--chunks", 2, "--max-kl", 9)
    assert (found.code, found.err) == (0, "")
    for words in ("mean KL divergence", "top-1 agreement", "perplexity, reference", "passed"):
        assert words in found.out
    assert cli(*pair, "--chunks", 2, "--quiet").out == ""


@pytest.mark.parametrize(
    ("flag", "metric", "good", "bad"),
    [
        ("--max-kl", "mean_kl", 9, 1e-9),
        ("--max-p99-kl", "p99_kl", 9, 1e-9),
        ("--min-agreement", "top1_agreement", 0, 1),
        ("--max-ppl-increase", "ppl_increase", 9, -0.9),
    ],
)
def test_gates(flag, metric, good, bad, cli, pair):
    for limit, code in ((good, 0), (bad, 3)):
        found = cli(*pair, "--chunks", 2, flag, limit, "--json")
        assert found.code == code
        (gate,) = found.json()["gates"]
        assert gate.keys() == {"metric", "limit", "measured", "passed"}
        assert (gate["metric"], gate["limit"], gate["passed"]) == (metric, limit, code == 0)
        assert found.json()["passed"] is (code == 0)


def test_a_failed_gate_is_shown(cli, pair):
    found = cli(*pair, "--chunks", 2, "--max-kl", 1e-9, "--min-agreement", 0)
    assert (found.code, found.err) == (3, "")
    assert "FAILED" in found.out and "passed" in found.out


def test_gates_in_python(models):
    report = halfbyte.verify(
        *(models / "llama", models / "q4_0.gguf"),
        data=models / "text.txt",
        context=32,
        chunks=2,
        limits={"max_kl": 99.0, "mean_kl": 1e-9},
    )
    assert not report.passed
    with pytest.raises(GateError, match="gate mean_kl: measured"):
        report.raise_if_failed()
    replace(report, gates=report.gates[:1]).raise_if_failed()


def test_int8_activations_and_threads(cli, pair):
    plain = cli(*pair, "--chunks", 2, "--json").json()
    rounded = cli(*pair, "--chunks", 2, "--compute", "int8", "--json").json()
    again = cli(*pair, "--chunks", 2, "--threads", 1, "--json").json()
    assert rounded["mean_kl"] != plain["mean_kl"]
    assert {k: again[k] for k in FIGURES} == {k: plain[k] for k in FIGURES}


def test_the_reference_as_llama_perplexity_stores_it(cli, pair):
    exact = cli(*pair, "--json").json()
    stored = cli(*pair, "--reference-storage", "16-bit", "--json").json()
    assert stored["ppl_candidate"] == exact["ppl_candidate"]
    assert stored["mean_kl"] != exact["mean_kl"]
    assert stored["mean_kl"] == pytest.approx(exact["mean_kl"], rel=0.01, abs=1e-4)


def test_encoder(cli, models):
    found = cli("verify", models / "bert", models / "bert.gguf", "--json").json()
    (entry,) = [e for e in found["outputs"] if e["name"] == "last_hidden_state"]
    assert entry.keys() == {"name", "cosine", "max_abs_error", "max_rel_error"}
    assert 0.999 < entry["cosine"] < 1
    assert 0 < entry["max_rel_error"] < 0.1


@pytest.mark.parametrize(
    ("flag", "good", "bad"),
    [("--min-cosine", 0.9, 1.1), ("--max-abs-error", 9, 0), ("--max-rel-error", 9, 0)],
)
def test_encoder_gates(flag, good, bad, cli, models):
    pair = ("verify", models / "bert", models / "bert.gguf")
    assert cli(*pair, flag, good).code == 0
    found = cli(*pair, flag, bad)
    assert found.code == 3
    assert "last_hidden_state" in found.out and "FAILED" in found.out


def test_arrays(cli, fails, models, tmp_path):
    arrays = tmp_path / "x.npz"
    np.savez(arrays, input_ids=np.array([[2, 9, 4, 3]]), attention_mask=np.ones((1, 4), np.int64))
    pair = ("verify", models / "bert", models / "bert.gguf", "--data")
    assert cli(*pair, arrays, "--json").json()["outputs"][0]["cosine"] > 0.999
    np.savez(arrays, what=np.zeros(3))
    assert "no input is named 'what'" in fails(*pair, arrays)
    arrays.write_bytes(b"PK\3\4 not an archive")
    assert "is not an .npz" in fails(*pair, arrays)
    assert "no such file" in fails(*pair, tmp_path / "none.npz")


def test_tokenizers_must_agree(fails, models, tmp_path):
    model = tiny_model("llama", hidden_size=64, intermediate_size=128)
    tokens = list(model.tokenizer.tokens)
    one, two = tokens.index("a"), tokens.index("e")
    tokens[one], tokens[two] = tokens[two], tokens[one]
    other = replace(model.tokenizer, tokens=tuple(tokens), source={})
    path = write_model(replace(model, tokenizer=other, _graph=[]), tmp_path / "other.gguf")
    line = fails("verify", models / "llama.gguf", path, "--data", models / "text.txt")
    assert "its tokenizer gives other tokens" in line


@pytest.mark.parametrize(
    ("reference", "candidate", "words"),
    [
        ("llama", "bert", "is no language model"),
        ("bert", "llama", "other tokens"),
        ("llama.gguf", "no-tokenizer.gguf", "has no tokenizer"),
        ("llama", "strange", "'strange' is not supported"),
        ("llama", "none", "no such file"),
    ],
)
def test_models_that_cannot_be_compared(reference, candidate, words, fails, models):
    assert words in fails("verify", models / reference, models / candidate)


def test_data_that_does_not_fit(cli, fails, models, tmp_path):
    pair = ("verify", models / "llama", models / "q4_0.gguf")
    assert "no such file" in fails(*pair, "--data", tmp_path / "none.txt")
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    assert "at byte 3: is not UTF-8" in fails(*pair, "--data", latin)
    latin.write_text("too short")
    assert "give a longer text" in fails(*pair, "--data", latin)
    assert "no such figure" in fails(*pair, "--data", models / "text.txt", "--min-cosine", 1)
    assert "no such figure" in fails("verify", models / "bert", models / "bert.gguf", "--max-kl", 1)
    assert cli(*pair, "--context", 3).code == 2


def test_vocabularies_of_different_sizes(fails, models, tmp_path):
    like = tiny_model("llama", hidden_size=64, intermediate_size=128)
    wide = random_model("llama", vocab_size=384, hidden_size=64, intermediate_size=128)
    path = write_model(replace(wide, tokenizer=like.tokenizer, _graph=[]), tmp_path / "wide.gguf")
    options = ("--data", models / "text.txt", "--context", 32)
    assert "logits over 320 and 384 tokens" in fails("verify", models / "llama", path, *options)


@pytest.mark.parametrize("factor", [1e9, np.nan, np.inf])
def test_a_broken_candidate_fails_its_gates(factor, cli, models, tmp_path):
    model = tiny_model("llama", hidden_size=64, intermediate_size=128)
    head = model.weights["lm_head.weight"]
    values = np.full(head.shape, factor, np.float32) * (head.float32() + 1)
    broken = tensor_from_array(head.name, values).identified(head.key)
    weights = {**model.weights, head.name: broken}
    path = write_model(model.with_weights(weights), tmp_path / "broken.gguf")
    options = ("--data", models / "text.txt", "--context", 32, "--chunks", 2)
    limits = ("--max-kl", 1e6, "--max-ppl-increase", 1e6, "--json")
    found = cli("verify", models / "llama", path, *options, *limits)
    assert found.code == 3
    assert found.json()["passed"] is False
    assert found.json()["ppl_candidate"] is None
