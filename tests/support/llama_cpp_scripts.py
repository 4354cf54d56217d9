"""llama.cpp's own conversion scripts, run in one process for many folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

# The script looks up a hash of what a tokenizer does: it knows none of a made-up one, so it is
# told the name. Everything else is its own.
_DRIVER = """
import json, runpy, sys
tree = sys.argv[1]
sys.path[:0] = [tree, tree + "/gguf-py"]
from conversion import base
for job in json.load(sys.stdin):
    name = job["pre"]
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer, name=name: name
    sys.argv = [tree + "/" + job["script"], *job["arguments"]]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        assert not error.code, job
"""


@dataclass(frozen=True)
class Job:
    """One run: the script's file name, its arguments, the pre-tokenizer it is told."""

    script: str
    arguments: tuple[str, ...]
    pre: str = "default"


def conversion(folder: Path, outtype: str, output: Path, pre: str = "default") -> Job:
    """Return the job that converts a model folder."""
    options = ("--outtype", outtype, "--outfile", str(output))
    return Job("convert_hf_to_gguf.py", (str(folder), *options), pre)


def adapter_conversion(folder: Path, base: Path, outtype: str, output: Path) -> Job:
    """Return the job that converts an adapter folder."""
    options = ("--outtype", outtype, "--outfile", str(output), "--base", str(base))
    return Job("convert_lora_to_gguf.py", (str(folder), *options))


def source_tree() -> Path | None:
    """Return the llama.cpp tree that HALFBYTE_LLAMA_CPP_SOURCE names, if it holds the scripts."""
    tree = Path(os.environ.get("HALFBYTE_LLAMA_CPP_SOURCE", ""))
    return tree if (tree / "convert_hf_to_gguf.py").is_file() else None


def require_source_tree() -> Path:
    """Return the llama.cpp tree, or skip the test."""
    tree = source_tree()
    if tree is None:
        pytest.skip("HALFBYTE_LLAMA_CPP_SOURCE names no llama.cpp source tree")
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return tree


def run(jobs: Sequence[Job], timeout: int = 550) -> None:
    """Run the jobs one after the other."""
    tree = require_source_tree()
    command = [sys.executable, "-c", _DRIVER, str(tree)]
    done = subprocess.run(
        command,
        input=json.dumps([asdict(job) for job in jobs]),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
