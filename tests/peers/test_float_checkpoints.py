"""compressed-tensors' own readers give the values of our float8, NVFP4 and MXFP4 folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters import read
from support.checkpoint_folders import quantized, settings_of

torch: Any = pytest.importorskip("torch")
compressors: Any = pytest.importorskip("compressed_tensors.compressors")
schemes: Any = pytest.importorskip("compressed_tensors.quantization")
safetensors: Any = pytest.importorskip("safetensors")


@pytest.mark.parametrize("type_name", ["nvfp4", "mxfp4", "fp8", "fp8-tensor", "fp8-block128"])
def test_decompressed_values(tmp_path: Path, type_name: str) -> None:
    folder = quantized(tmp_path, "hf:compressed-tensors", type_name)
    said = settings_of(folder)
    scheme = schemes.QuantizationScheme(**said["config_groups"]["group_0"])
    compressor = compressors.BaseCompressor.load_from_registry(said["format"])
    weights = read(folder).weights
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        for name in (n for n in weights if n.endswith("_proj.weight")):
            module = name.removesuffix("weight")
            held = {
                stored.removeprefix(module): file.get_tensor(stored)
                for stored in file.keys()  # noqa: SIM118
                if stored.startswith(module)
            }
            found = compressor.decompress(held, scheme)["weight"].float().numpy()
            # FP4 comes back as bfloat16, which holds every product of 2 and 4 bits of mantissa.
            np.testing.assert_array_equal(found, weights[name].decode())
