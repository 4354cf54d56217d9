"""Quantized checkpoints as other tools lay them out. A new one is one object and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, cast

from halfbyte.errors import UnsupportedError

if TYPE_CHECKING:
    from halfbyte.converters.hugging_face.checkpoints.checkpoint import Checkpoint

_HERE = "halfbyte.converters.hugging_face.checkpoints"

# quant_method of config.json -> "module:OBJECT", a Checkpoint.
CHECKPOINTS: dict[str, str] = {
    "gptq": f"{_HERE}.gptq:GPTQ",
    "awq": f"{_HERE}.awq:AWQ",
    "compressed-tensors": f"{_HERE}.compressed_tensors:COMPRESSED_TENSORS",
    "auto-round": f"{_HERE}.auto_round:AUTO_ROUND",
    "mlx": f"{_HERE}.mlx:MLX",
    "fp8": f"{_HERE}.fp8:FP8",
    "bitsandbytes": f"{_HERE}.bitsandbytes:BITSANDBYTES",
    "modelopt": f"{_HERE}.modelopt:MODELOPT",
    "mxfp4": f"{_HERE}.mxfp4:MXFP4_BLOCKS",
}

# Flavour after the colon of `--to hf:` -> quant_method.
FLAVOURS: Mapping[str, str] = {
    "gptq": "gptq",
    "awq": "awq",
    "compressed-tensors": "compressed-tensors",
    "mlx": "mlx",
    "fp8": "fp8",
}


def get_checkpoint(method: str, where: str) -> Checkpoint:
    """Return what reads and writes checkpoints of a quant_method; `where` is named in the error.

    Raises:
        UnsupportedError: the method is not known here.
    """
    if method not in CHECKPOINTS:
        raise UnsupportedError(
            f"a checkpoint quantized by {method or 'an unnamed method'!r}", where,
            list(CHECKPOINTS), "take the model it was made from",
        )  # fmt: skip
    module, name = CHECKPOINTS[method].split(":")
    return cast("Checkpoint", getattr(import_module(module), name))


def checkpoint_of_flavour(flavour: str) -> Checkpoint | None:
    """Return what writes `--to hf:flavour`, None for the plain folder.

    Raises:
        UnsupportedError: the flavour is not known.
    """
    if not flavour:
        return None
    if flavour not in FLAVOURS:
        known = ["hf without a flavour", *(f"hf:{name}" for name in FLAVOURS)]
        raise UnsupportedError(f"flavour {flavour!r}", "--to hf", known)
    return get_checkpoint(FLAVOURS[flavour], f"--to hf:{flavour}")
