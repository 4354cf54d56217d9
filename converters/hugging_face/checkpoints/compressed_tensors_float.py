"""compressed-tensors' 4-bit floats, `weight_packed` uint8 [out, in / 2] with small scales.

`nvfp4-pack-quantized`: `weight_scale` float8_e4m3fn [out, in / 16] and `weight_global_scale` [1], a
divisor; `mxfp4-pack-quantized`: exponents as scales, uint8 [out, in / 32].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from halfbyte.converters.hugging_face.checkpoints.ct_config import Group
from halfbyte.converters.hugging_face.checkpoints.fp4_parts import mxfp4_weight, nvfp4_weight
from halfbyte.converters.hugging_face.checkpoints.stored_weights import StoredWeight, part_of
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.tensor import Tensor

NV, MX = "nvfp4-pack-quantized", "mxfp4-pack-quantized"
FP4_FORMATS = {"nvfp4": NV, "mxfp4": MX}
GLOBAL, INPUT_GLOBAL = "weight_global_scale", "input_global_scale"
FLOAT_TYPES: tuple[Encoding, ...] = tuple(
    encoding_from_name(name)
    for name in ("fp8", "fp8-bf16", "fp8-tensor", "fp8-block128", "fp8-g128", "mxfp4", "nvfp4")
)


def fp4_weight(stored: StoredWeight, group: Group) -> Tensor | None:
    """Return the weight of a module whose packed codes are floats, None for integers.

    Raises:
        FormatError: its arrays do not fit each other.
    """
    if part_of(stored.held["weight_packed"]).dtype != np.uint8:
        return None
    if INPUT_GLOBAL in stored:
        stored.found.notes.append(f"{stored.module}: scale of activations left out")
    if GLOBAL in stored or group.format == NV:
        return nvfp4_weight(stored, "weight_packed", GLOBAL, True)
    return mxfp4_weight(stored, "weight_packed")


def fp4_arguments(name: str) -> dict[str, Any]:
    """Return the arguments that say how weights of an encoding are stored."""
    encoding = encoding_from_name(name)
    exponents = FP4_FORMATS[name] == MX
    return {
        "num_bits": 4,
        "type": "float",
        "symmetric": True,
        "strategy": "group" if exponents else "tensor_group",
        "group_size": encoding.block_shape[1],
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "scale_dtype": "torch.uint8" if exponents else "torch.float8_e4m3fn",
        "zp_dtype": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
