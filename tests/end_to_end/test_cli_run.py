"""`halfbyte run`, `bench` and `demo`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import halfbyte
from halfbyte import demonstration
from halfbyte.cli import COMMANDS
from halfbyte.converters.tokenizers.codec import Codec
from support.model_folders import tiny_model, write_model

KEYS = {"text", "token_ids", "prompt_token_ids", "prefill_tokens_per_s", "decode_tokens_per_s"}
GREEDY = ("--temperature", 0, "--compute", "exact", "--json")


def greedy_by_hand(model, prompt: list[int], count: int) -> list[int]:
    """Run the whole text again for every token."""
    ids = list(prompt)
    for _ in range(count):
        logits = halfbyte.Session(model, fuse=False).run({"input_ids": [ids]})["logits"]
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", ["llama", "llama.gguf", "llama.hb", "q4_0.gguf"])
def test_greedy_json(name, cli, models):
    found = cli("run", models / name, "The quick", "--max-tokens", 8, "--raw", *GREEDY).json()
    assert found.keys() >= KEYS
    model = halfbyte.open(models / name)
    codec = Codec(model.tokenizer)
    assert found["prompt_token_ids"] == codec.encode("The quick")
    expected = greedy_by_hand(model, found["prompt_token_ids"], 8)
    assert found["token_ids"] == expected[: len(found["token_ids"])]
    assert len(found["token_ids"]) == 8 or expected[len(found["token_ids"])] == 0
    assert found["text"] == codec.decode(found["token_ids"])
    assert found["decode_tokens_per_s"] > 0 and found["prefill_tokens_per_s"] > 0


def test_streamed_text_is_the_text(cli, models):
    shared = ("run", models / "llama", "fox", "--max-tokens", 12, "--seed", 3)
    text = cli(*shared, "--json").json()["text"]
    assert cli(*shared).out == text + "\n"
    assert cli(*shared, "--quiet").out == ""


def test_seeds(cli, models):
    def ids(*options: object) -> list[int]:
        shared = ("run", models / "llama", "fox", "--max-tokens", 16, "--temperature", 1.5)
        return cli(*shared, "--top-k", 0, "--top-p", 1, "--json", *options).json()["token_ids"]

    assert ids("--seed", 1) == ids("--seed", 1)
    assert len({tuple(ids("--seed", seed)) for seed in range(4)}) > 1
    assert len({tuple(ids()) for _ in range(4)}) > 1
    assert ids("--seed", 1, "--top-k", 1) == ids("--seed", 2, "--top-k", 1)


def test_repetition_penalty(cli, models):
    shared = ("run", models / "llama", "fox", "--max-tokens", 24, *GREEDY)
    found = cli(*shared, "--repetition-penalty", 1e9).json()["token_ids"]
    assert len(set(found)) == len(found)


def test_stop_strings(cli, models):
    shared = ("run", models / "llama", "fox", "--max-tokens", 24, *GREEDY)
    whole = cli(*shared).json()["text"]
    stop = whole[4:6]
    found = cli(*shared, "--stop", stop, "--stop", "never there").json()
    assert found["text"] == whole[: whole.index(stop)]
    assert found["stopped_by"] == "stop"


def test_no_tokens_asked(cli, models):
    found = cli("run", models / "llama", "fox", "--max-tokens", 0, "--json").json()
    assert (found["text"], found["token_ids"], found["stopped_by"]) == ("", [], "length")


def test_chat_template(cli, models):
    codec = Codec(halfbyte.open(models / "chat.gguf").tokenizer)
    shared = ("run", models / "chat.gguf", "hi", "--max-tokens", 1, "--json")
    asked = cli(*shared).json()["prompt_token_ids"]
    assert asked[0] == 0
    assert codec.decode(asked) == "user: hi\nassistant:"
    system = cli(*shared, "--system", "be brief").json()["prompt_token_ids"]
    assert codec.decode(system) == "system: be brief\nuser: hi\nassistant:"
    raw = cli(*shared, "--raw").json()["prompt_token_ids"]
    assert codec.decode(raw) == "hi"


def test_special_tokens_in_a_prompt_are_tokens(cli, models):
    shared = ("run", models / "llama", "<|endoftext|>", "--max-tokens", 1, "--json")
    assert cli(*shared).json()["prompt_token_ids"] == [0]
    assert cli(*shared, "--raw").json()["prompt_token_ids"] == [0]


def test_every_command_takes_device_and_threads(cli, models):
    for name in COMMANDS.keys() - {"completion"}:
        shown = cli(name, "--help").out
        assert "--device" in shown and "--threads" in shown and "--quiet" in shown, name
        assert "--json" in shown, name
    refused = cli("inspect", models / "llama", "--device", "cuda")
    assert refused.code == 1
    assert "error: device 'cuda' is not available; " in refused.err


def test_arrays_in_and_out(cli, models, tmp_path):
    ids = np.array([[5, 17, 250, 3]])
    np.savez(tmp_path / "x.npz", input_ids=ids)
    arrays = ("--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    found = cli("run", models / "llama.hb", *arrays, "--json").json()
    assert found["outputs"] == [{"name": "logits", "shape": [1, 4, 320], "dtype": "float32"}]
    with np.load(tmp_path / "y.npz") as written:
        expected = halfbyte.Session(halfbyte.open(models / "llama.hb")).run({"input_ids": ids})
        assert np.array_equal(written["logits"], expected["logits"])
    shown = cli("run", models / "bert", "--input", tmp_path / "x.npz")
    assert "last_hidden_state  float32  [1, 4, 64]" in shown.out
    assert cli("run", models / "bert", "--input", tmp_path / "x.npz", "-q").out == ""


def test_arrays_that_do_not_fit(fails, models, tmp_path):
    arrays, output = tmp_path / "x.npz", tmp_path / "y.npz"
    for values, words in (
        ({"what": np.zeros(3)}, "no input is named 'what'"),
        ({"input_ids": np.array([[99999]])}, "input_ids"),
        ({"input_ids": np.array([5])}, "rank 2"),
        ({"input_ids": np.array([[0.5]])}, "int64 was required"),
        ({"input_ids": np.array([[None]])}, "is not an .npz of plain arrays"),
    ):
        np.savez(arrays, **values)
        assert words in fails("run", models / "llama", "--input", arrays, "--output", output)
        assert not output.exists()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["text", "--input", "x.npz"],
        ["text", "--output", "y.npz"],
        ["text", "--temperature", "-1"],
        ["text", "--top-p", "2"],
        ["text", "--seed", "-1"],
        ["text", "--compute", "wrong"],
        ["text", "--device", "abacus"],
        ["text", "--threads", "-1"],
        ["text", "--max-tokens", "many"],
    ],
)
def test_wrong_usage(options, cli, models):
    found = cli("run", models / "llama", *options)
    assert (found.code, found.out) == (2, "")
    assert "Error: " in found.err


@pytest.mark.parametrize(
    ("name", "prompt", "words"),
    [
        ("bert", "x", "is no language model"),
        ("no-tokenizer.gguf", "x", "has no tokenizer"),
        ("llama", "", "the prompt has no tokens"),
        ("strange", "x", "'strange' is not supported"),
        ("none", "x", "no such file"),
    ],
)
def test_models_that_take_no_prompt(name, prompt, words, fails, models):
    assert words in fails("run", models / name, prompt)


def test_missing_device(fails, models):
    assert "device 'cuda'" in fails("run", models / "llama", "x", "--device", "cuda")


def test_a_long_prompt_is_run_in_pieces(cli, models):
    found = cli("run", models / "llama", "fox " * 600, "--max-tokens", 1, "--raw", *GREEDY)
    assert found.code in (0, 1)  # beyond the trained context a model may refuse
    assert (len(found.json()["token_ids"]) == 1) if found.code == 0 else "error: " in found.err


def test_text_through_a_pipe(models):
    command = [
        sys.executable,
        "-m",
        "halfbyte",
        "run",
        str(models / "llama"),
        "日本",
        "--seed",
        "1",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, capture_output=True, timeout=120, env=environment)
    assert (found.returncode, found.stderr) == (0, b"")


def test_bench(cli, fails, models):
    sizes = ("--prefill", 8, "--decode", 4, "--repetitions", 2, "--threads", 1)
    found = cli("bench", models / "q4_0.gguf", *sizes, "--json").json()
    assert [entry["test"] for entry in found["results"]] == ["pp8", "tg4"]
    for entry in found["results"]:
        assert entry.keys() == {"test", "tokens_per_s", "spread", "bandwidth_share"}
        assert entry["tokens_per_s"] > 0 and entry["spread"] >= 0
    assert found["results"][0]["bandwidth_share"] is None
    assert found["results"][1]["bandwidth_share"] > 0
    text = cli("bench", models / "llama", *sizes)
    assert "pp8" in text.out and "tg4" in text.out
    assert cli("bench", models / "llama", *sizes, "-q").out == ""


def test_bench_of_a_model_without_text(cli, fails, models, tmp_path):
    found = cli("bench", models / "bert", "--repetitions", 2, "--json").json()["results"]
    assert [entry["test"] for entry in found] == ["run"]
    assert found[0]["milliseconds"] > 0
    arrays = tmp_path / "x.npz"
    np.savez(arrays, input_ids=np.arange(1, 6)[None])
    text = cli("bench", models / "bert", "--input", arrays, "--repetitions", 1).out
    assert "ms" in text and "run" in text
    assert "no input is named" in fails("bench", models / "q4_0.gguf", "--input", wrong(tmp_path))


def wrong(folder: Path) -> Path:
    np.savez(folder / "wrong.npz", pixels=np.zeros(3))
    return folder / "wrong.npz"


@pytest.fixture
def small_demo(monkeypatch, models, tmp_path):
    """Let the demonstration run on a tiny model instead of the embedded one."""
    folder = write_model(
        tiny_model("llama", hidden_size=64, intermediate_size=128), tmp_path / "embedded"
    )
    (folder / "validation.txt").write_text((models / "text.txt").read_text() * 3)
    monkeypatch.setattr(demonstration, "demo_model", lambda: folder)
    monkeypatch.setattr(demonstration, "CONTEXT", 64)
    return folder


FILES = [demonstration.REFERENCE, *(name for name, _ in demonstration.OUTPUTS)]


def test_demo_on_a_small_model(cli, small_demo, tmp_path):
    found = cli("demo", "--chunks", 2, "--output", tmp_path / "out", "--json").json()
    assert [row["file"] for row in found["rows"]] == FILES
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    sizes = [row["bits_per_weight"] for row in found["rows"]]
    assert sizes[1] == pytest.approx(8.5, abs=0.2)
    for row in found["rows"]:
        assert row["mean_kl"] >= 0 and 0 <= row["top1_agreement"] <= 1
    assert found["rows"][2]["mean_kl"] > found["rows"][1]["mean_kl"]


def test_demo_table(cli, small_demo):
    found = cli("demo", "--chunks", 1)
    assert found.code == 0
    for name in FILES:
        assert name in found.out
    assert found.err.startswith("read ")
    quiet = cli("demo", "--chunks", 1, "--quiet")
    assert (quiet.out, quiet.err) == ("", "")


@pytest.mark.skipif(
    importlib.util.find_spec("halfbyte.demo") is None, reason="the embedded model is not here"
)
def test_demo_on_the_embedded_model(cli):
    assert demonstration.demo_text().is_file()
    rows = cli("demo", "--chunks", 1, "--json").json()["rows"]
    assert [row["file"] for row in rows] == FILES
    assert rows[0]["mean_kl"] < 1e-8 and rows[0]["top1_agreement"] == 1
    assert rows[0]["mean_kl"] < rows[1]["mean_kl"] < rows[2]["mean_kl"] < 0.2
    assert rows[1]["top1_agreement"] > 0.97 and rows[2]["top1_agreement"] > 0.8
