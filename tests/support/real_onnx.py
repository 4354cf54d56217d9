"""ONNX models for tests, exported here by PyTorch and quantized here by onnxruntime.

Run as a module to make them: `cd tests && python -m support.real_onnx`. Needs torch, transformers,
onnx and onnxruntime. `minilm` has the trained weights of `real_models.py`, `decoder` those of the
folder in HALFBYTE_DECODER; all others have the shapes of published architectures, made smaller,
with random weights from a fixed seed.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.real_models import cache_folder, real_model

Arrays = dict[str, np.ndarray]
SEED = 11
# Every model of `real_onnx_exports.py`, and whether it holds integers instead of floats.
NAMES = {
    **dict.fromkeys(("resnet_op9", "mobilenet_op12", "convnext_op17", "vit_op18"), False),
    **dict.fromkeys(("segformer_op13", "segments_op11", "boxes_op11", "reader_op10"), False),
    **dict.fromkeys(("voice_op16", "wav2vec_op15", "gpt2_op14", "minilm_op14"), False),
    **dict.fromkeys(("decoder_op17", "minilm_fused", "decoder_4bit"), False),
    **dict.fromkeys(("resnet_qoperator", "convnext_qdq", "voice_dynamic"), True),
    **dict.fromkeys(("minilm_dynamic", "minilm_qdq", "resnet_fused_int8"), True),
}


@dataclass(frozen=True)
class Exported:
    """How one model is made. source: the model that is quantized or rewritten, if any."""

    kind: str
    opset: int
    make: Callable[[Exported, Path], None]
    source: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = False


def folder() -> Path:
    """Return the folder that holds the models."""
    return cache_folder() / "onnx"


def require_onnx(name: str) -> Path:
    """Return the path of a model, or skip the test with the reason."""
    path = folder() / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {folder()}; run support.real_onnx")
    return path


def example_inputs(path: Path, seed: int = SEED) -> Arrays:
    """Return inputs by name: images 0..1, audio noise, token ids in range, masks of ones."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(seed)
    made: Arrays = {}
    for value in session.get_inputs():
        shape = tuple(_length(dim) for dim in value.shape)
        if value.type == "tensor(int64)":
            made[value.name] = _integers(value.name, shape, random)
        elif value.name.startswith("state"):
            made[value.name] = np.zeros(shape, np.float32)
        elif value.name == "audio":
            made[value.name] = random.standard_normal(shape, dtype=np.float32) * np.float32(0.1)
        else:
            made[value.name] = random.random(shape, dtype=np.float32)
    return made


def _integers(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if name == "position_ids":
        return np.broadcast_to(np.arange(shape[-1]), shape).copy()
    low, high = (1, 2) if "mask" in name else (0, 2 if "type" in name else 400)
    return random.integers(low, high, shape, dtype=np.int64)


def _length(dim: int | str | None) -> int:
    return dim if isinstance(dim, int) else {"batch": 2, "sequence": 12}.get(str(dim), 1)


def main() -> int:
    """Make every model that is not there; report the ones that cannot be made."""
    from support.real_onnx_exports import EXPORTED

    failed = 0
    folder().mkdir(parents=True, exist_ok=True)
    wanted = sys.argv[1:] or list(EXPORTED)
    for name in wanted:
        path, plan = folder() / f"{name}.onnx", EXPORTED[name]
        if path.is_file():
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plan.make(plan, path)
            print(f"{name}: {path.stat().st_size / 1e6:.1f} MB")
        except Exception as error:
            path.unlink(missing_ok=True)
            print(f"{name}: not made ({type(error).__name__}: {str(error)[:300]})")
            failed += 1
    return 1 if failed else 0


def trained_folder(name: str) -> Path:
    """Return a folder of trained weights.

    Raises:
        FileNotFoundError: it is not here.
    """
    found = real_model(name)
    if found is None:
        raise FileNotFoundError(f"model {name!r} is not here")
    return found


if __name__ == "__main__":
    sys.exit(main())
