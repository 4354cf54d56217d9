"""Quantize a model with another tool, in that tool's own interpreter; see bench_calibration.py.

    PYTHON bench/calibration_peers.py TOOL MODEL TEXT OUTPUT --bits 4 --group 128 [--asymmetric]

TOOL: `llmcompressor`, `gptqmodel` (both GPTQ) or `auto-round` (with --iterations). PYTHON has that
tool installed beside torch. Prints one JSON line: seconds of wall and of CPU time without imports,
and the peak of resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


def token_rows(model: Path, text: Path, samples: int, length: int) -> list[list[int]]:
    """Return `samples` rows of `length` token ids from the start of the text."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model)(text.read_text())["input_ids"]
    return [ids[start * length : (start + 1) * length] for start in range(samples)]


def llmcompressor(options: argparse.Namespace, rows: list[list[int]]) -> None:
    """Run GPTQModifier."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    strategy: dict[str, Any] = {"strategy": "channel"}
    if options.group:
        strategy = {"strategy": "group", "group_size": options.group}
    weights = QuantizationArgs(
        num_bits=options.bits, type="int", symmetric=not options.asymmetric, **strategy
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    recipe = GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
    model = AutoModelForCausalLM.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    data = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
    oneshot(
        model=model, tokenizer=tokenizer, dataset=Dataset.from_dict(data), recipe=recipe,
        max_seq_length=len(rows[0]), num_calibration_samples=len(rows),
    )  # fmt: skip
    model.save_pretrained(options.output, save_compressed=True)
    tokenizer.save_pretrained(options.output)


def auto_round(options: argparse.Namespace, rows: list[list[int]]) -> None:
    """Run AutoRound."""
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tuner = AutoRound(
        model, tokenizer, bits=options.bits, group_size=options.group or -1,
        sym=not options.asymmetric, iters=options.iterations, nsamples=len(rows),
        seqlen=len(rows[0]), batch_size=8, device_map="cpu", enable_torch_compile=False,
        dataset=[torch.tensor([row]) for row in rows],
    )  # fmt: skip
    tuner.quantize_and_save(str(options.output), format="auto_gptq")


def gptqmodel(options: argparse.Namespace, rows: list[list[int]]) -> None:
    """Run GPTQModel's GPTQ."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # fewer, as on two cores, are an error
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=options.bits, group_size=options.group or -1, sym=not options.asymmetric
    )
    model = GPTQModel.load(str(options.model), config, device="cpu")
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
    model.save(str(options.output))


TOOLS = {"llmcompressor": llmcompressor, "auto-round": auto_round, "gptqmodel": gptqmodel}


def main() -> None:
    """Run one tool and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    for name in ("model", "text", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=128, help="0: one scale for each row")
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args()
    rows = token_rows(options.model, options.text, options.samples, options.length)
    __import__({"auto-round": "auto_round"}.get(options.tool, options.tool))
    started, used = time.perf_counter(), time.process_time()
    TOOLS[options.tool](options, rows)
    wall, cpu = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": wall, "cpu_seconds": cpu, "peak_memory_bytes": peak}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
