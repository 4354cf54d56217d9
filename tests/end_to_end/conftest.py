"""Tiny models on disk and the command line, called in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from halfbyte.cli.group import run
from support.model_folders import tiny_model, write_model, write_text
from support.outlier_models import with_outliers

TEMPLATE = (
    "{% for m in messages %}<|endoftext|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True)
class Outcome:
    """What one call of the command line did."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return standard output as one JSON document."""
        assert self.code in (0, 3), self.err
        return json.loads(self.out)


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        found = capsys.readouterr()
        return Outcome(code, found.out, found.err)

    return call


@pytest.fixture
def fails(cli: Cli) -> Cli:
    """Call a command that must fail with exit code 1 and one line; return that line."""

    def call(*arguments: object) -> str:
        found = cli(*arguments)
        assert found.code == 1, found
        assert found.out == ""
        assert found.err.startswith("error: "), found.err
        assert found.err.endswith("\n") and found.err.count("\n") == 1, found.err
        return found.err

    return call


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tiny models: read only."""
    root = tmp_path_factory.mktemp("models")
    llama = tiny_model("llama", hidden_size=64, intermediate_size=128)
    for name in ("llama", "llama.gguf", "llama.hb"):
        write_model(llama, root / name)
    write_model(llama, root / "q4_0.gguf", "Q4_0")
    write_model(replace(llama, tokenizer=None, _graph=[]), root / "no-tokenizer.gguf")
    assert llama.tokenizer is not None
    chat = replace(llama.tokenizer, chat_template=TEMPLATE)
    write_model(replace(llama, tokenizer=chat, _graph=[]), root / "chat.gguf")
    strange = dict(llama.config)
    write_model(replace(llama, config=strange), root / "strange")
    config = root / "strange" / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"strange"'))
    bert = tiny_model("bert", hidden_size=64, intermediate_size=128)
    write_model(bert, root / "bert")
    write_model(bert, root / "bert.gguf", "Q8_0")
    (root / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 12)
    return root


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a text to calibrate and to judge on."""
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture
def data(text: Path) -> tuple[Any, ...]:
    """Return the options of a small calibration."""
    return ("--calib", text, "--calib-samples", 8, "--calib-length", 48)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a tiny model, and the same with a few large channels."""
    folder = tmp_path_factory.mktemp("outliers")
    model = tiny_model("llama", 3, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    return {
        "plain": write_model(model, folder / "plain"),
        "outliers": write_model(with_outliers(model), folder / "outliers"),
    }
