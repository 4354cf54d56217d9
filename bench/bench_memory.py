"""Peak anonymous memory and time of converting a large checkpoint.

Makes a Llama checkpoint of the given size with real tensor names, as a sparse file that takes no
disk space, and converts it in a child process per target. Mapped file pages do not count. The
output takes its full size on disk and is deleted after each conversion.

    python bench/bench_memory.py --gigabytes 8 --targets hb,gguf,gguf:Q8_0
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

LIMIT_BYTES = 300e6
HIDDEN = 4096
INNER = 11008
VOCABULARY = 32000


def llama_config(gigabytes: float) -> dict[str, Any]:
    """Return the config of a bfloat16 Llama of about this size."""
    layer_bytes = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)
    outside = 2 * 2 * VOCABULARY * HIDDEN
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": max(1, round((gigabytes * 1e9 - outside) / layer_bytes)),
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def tokenizer_json() -> str:
    """Return a byte-level tokenizer with only its alphabet."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return str(tokenizer.to_str())


def make_checkpoint(folder: Path, gigabytes: float) -> int:
    """Write the sparse checkpoint and return its weights' bytes."""
    from halfbyte.converters.architectures import get_architecture
    from halfbyte.converters.hugging_face.safetensors_writer import (
        ArraySpec,
        header_bytes,
        in_file_order,
    )

    config = llama_config(gigabytes)
    architecture = get_architecture("llama")
    wanted = architecture.weight_specs(architecture.canonical_config(config))
    dtype = np.dtype(ml_dtypes.bfloat16)
    specs = [ArraySpec(spec.name, dtype, spec.shape) for spec in wanted if spec.name]
    head = header_bytes(in_file_order(specs), {"format": "pt"})
    total = sum(spec.nbytes for spec in specs)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + total)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    return total


def convert(source: Path, output: Path, target: str, threads: int) -> dict[str, Any]:
    """Convert in this process; return seconds and the memory that grew."""
    import halfbyte
    from halfbyte.memory import PeakMemory, anonymous_bytes

    to, _, encoding = target.partition(":")
    started, before = time.perf_counter(), anonymous_bytes()
    with PeakMemory() as memory:
        options: dict[str, Any] = {"to": to, "threads": threads}
        if encoding:
            halfbyte.quantize(source, output, type=encoding, **options)
        else:
            halfbyte.convert(source, output, **options)
    return {
        "seconds": time.perf_counter() - started,
        "peak_anonymous_bytes": memory.peak_bytes,
        "before_bytes": before,
    }


def remove(path: Path) -> int:
    """Delete a file or the files of a folder; return the bytes they had."""
    files = list(path.iterdir()) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    for file in files:
        file.unlink()
    return size


def measure(source: Path, work: Path, target: str, threads: int) -> dict[str, Any]:
    """Convert in a child process and delete the output."""
    output = work / f"output-{target.replace(':', '-')}"
    arguments = ["--child", str(source), str(output), target, str(threads)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["output_bytes"] = remove(output)
    return found


def main() -> int:
    """Measure every target and hold it to the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--targets", default="hb,gguf,hf", help="FORMAT[:TYPE], comma between")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", default=None, help="where the output goes")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        source, output, target, threads = options.child
        print(json.dumps(convert(Path(source), Path(output), target, int(threads))))
        return 0
    passed = True
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder) / "source"
        source.mkdir()
        total = make_checkpoint(source, options.gigabytes)
        print(f"source: {total / 1e9:.2f} GB bfloat16, sparse")
        for target in options.targets.split(","):
            found = measure(source, Path(folder), target, options.threads)
            peak = found["peak_anonymous_bytes"]
            passed &= peak < LIMIT_BYTES
            print(
                f"{target:12} {found['output_bytes'] / 1e9:6.2f} GB  {found['seconds']:6.1f} s  "
                f"{total / 1e9 / found['seconds']:5.2f} GB/s  peak anonymous {peak / 1e6:5.0f} MB"
            )
    print("PASS" if passed else f"FAIL: more than {LIMIT_BYTES / 1e6:.0f} MB")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
