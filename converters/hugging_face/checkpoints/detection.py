"""Finding out whether a folder is quantized, and by which method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfbyte.converters.hugging_face.checkpoints.checkpoint import Quantization
from halfbyte.converters.hugging_face.safetensors import parse_json
from halfbyte.errors import FormatError
from halfbyte.ir.tensor import Tensor

CONFIG_FILE = "config.json"
MAX_BYTES = 100_000_000

# Files of tools that do not write into config.json -> the key in them, and the method they mean.
OTHER_FILES: dict[str, tuple[str, str]] = {
    "quantize_config.json": ("", "gptq"),
    "quant_config.json": ("", "awq"),
    "hf_quant_config.json": ("quantization", "modelopt"),
}
# Keys of a quantization_config without quant_method -> the method they mean.
_KEYS: dict[str, str] = {"config_groups": "compressed-tensors", "w_bit": "awq", "mode": "mlx"}
# Endings of tensor names that only one method has.
_ENDINGS: dict[str, str] = {
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "fp8",
    ".weight.absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    "_proj_blocks": "mxfp4",
    ".weight_scale_2": "modelopt",
}


def find_quantization(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Quantization | None:
    """Return what a folder says about its quantization, None for one that is not quantized.

    config: config.json. Looks there first, then into the files of older tools, then at names.

    Raises:
        FormatError: what it says is no object.
    """
    for key in ("quantization_config", "compression_config", "quantization"):
        said = config.get(key)
        if said:
            where = folder / CONFIG_FILE
            if not isinstance(said, dict):
                rule = f"{key} is {said!r}, an object was required; take the model it was made from"
                raise FormatError(where, rule)
            method = _method_of(said) or ("mlx" if "quantization" in config else "")
            return Quantization(method or _by_names(tensors), said, config, where)
    for name, (key, method) in OTHER_FILES.items():
        path = folder / name
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            said = parse_json(path.read_bytes(), path, name)
            inner = said.get(key) if key else said
            if not isinstance(inner, dict):
                raise FormatError(path, f"{key!r} must be an object; download it again")
            return Quantization(_method_of(inner) or method, inner, config, path)
    method = _by_names(tensors)
    return Quantization(method, {}, config, folder) if method else None


def _method_of(settings: Mapping[str, Any]) -> str:
    found = settings.get("quant_method")
    if isinstance(found, str) and found:
        return found
    return next((method for key, method in _KEYS.items() if key in settings), "")


def _by_names(tensors: Mapping[str, Tensor]) -> str:
    for name in tensors:
        if name.endswith(".qweight"):
            scales = tensors.get(name.removesuffix("qweight") + "scales")
            width = tensors[name].columns
            return "awq" if scales is not None and scales.columns == 8 * width else "gptq"
        for ending, method in _ENDINGS.items():
            if name.endswith(ending):
                return method
    return ""
