"""Block layouts of ggml: values, bytes, field offsets and type ids. The one place for these facts.

Runs on its own too: `python layouts.py OUTPUT.hpp` writes the C++ header that the extension is
built with. Multi-byte fields are little-endian.

    Q4_0  d f16 | qs[16]                       value (q - 8) * d
    Q4_1  d f16 | m f16 | qs[16]               value q * d + m
    Q5_0  d f16 | qh[4] | qs[16]               value (q - 16) * d
    Q5_1  d f16 | m f16 | qh[4] | qs[16]       value q * d + m
    Q8_0  d f16 | qs[32] int8                  value q * d

qs byte j holds value j in its low nibble and value j + 16 in its high one; bit i of the 32-bit
word qh is bit 4 of value i. Blocks of 256 have a scale (and minimum) for each 16 or 32 values:

    Q2_K  scales[16] | qs[64] | d f16 | dmin f16               value d * sc * q - dmin * mn
    Q3_K  hmask[32] | qs[64] | scales[12] | d f16              value d * (sc - 32) * (q - 4)
    Q4_K  d f16 | dmin f16 | scales[12] | qs[128]              value d * sc * q - dmin * mn
    Q5_K  d f16 | dmin f16 | scales[12] | qh[32] | qs[128]     value d * sc * q - dmin * mn
    Q6_K  ql[128] | qh[64] | scales[16] int8 | d f16           value d * sc * (q - 32)

How their fields hold bits is in ir/encodings/ggml_k_fields.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True)
class Layout:
    """One block type. `ggml_id` is None for types that ggml does not know; offsets in bytes."""

    name: str
    ggml_id: int | None
    values: int
    bytes: int
    offsets: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def bits_per_weight(self) -> float:
        """Return the stored bits per value."""
        return 8 * self.bytes / self.values


LAYOUTS: dict[str, Layout] = {
    "float32": Layout("float32", 0, 1, 4),
    "float16": Layout("float16", 1, 1, 2),
    "bfloat16": Layout("bfloat16", 30, 1, 2),
    "float64": Layout("float64", 28, 1, 8),
    "float8_e4m3fn": Layout("float8_e4m3fn", None, 1, 1),
    "float8_e5m2": Layout("float8_e5m2", None, 1, 1),
    "int8": Layout("int8", 24, 1, 1),
    "int16": Layout("int16", 25, 1, 2),
    "int32": Layout("int32", 26, 1, 4),
    "int64": Layout("int64", 27, 1, 8),
    "Q4_0": Layout("Q4_0", 2, 32, 18, MappingProxyType({"d": 0, "qs": 2})),
    "Q4_1": Layout("Q4_1", 3, 32, 20, MappingProxyType({"d": 0, "m": 2, "qs": 4})),
    "Q5_0": Layout("Q5_0", 6, 32, 22, MappingProxyType({"d": 0, "qh": 2, "qs": 6})),
    "Q5_1": Layout("Q5_1", 7, 32, 24, MappingProxyType({"d": 0, "m": 2, "qh": 4, "qs": 8})),
    "Q8_0": Layout("Q8_0", 8, 32, 34, MappingProxyType({"d": 0, "qs": 2})),
    "Q2_K": Layout(
        "Q2_K", 10, 256, 84, MappingProxyType({"scales": 0, "qs": 16, "d": 80, "dmin": 82})
    ),
    "Q3_K": Layout(
        "Q3_K", 11, 256, 110, MappingProxyType({"hmask": 0, "qs": 32, "scales": 96, "d": 108})
    ),
    "Q4_K": Layout(
        "Q4_K", 12, 256, 144, MappingProxyType({"d": 0, "dmin": 2, "scales": 4, "qs": 16})
    ),
    "Q5_K": Layout(
        "Q5_K", 13, 256, 176, MappingProxyType({"d": 0, "dmin": 2, "scales": 4, "qh": 16, "qs": 48})
    ),
    "Q6_K": Layout(
        "Q6_K", 14, 256, 210, MappingProxyType({"ql": 0, "qh": 128, "scales": 192, "d": 208})
    ),
    "Q1_0": Layout("Q1_0", 41, 128, 18, MappingProxyType({"d": 0, "qs": 2})),
    "Q2_0": Layout("Q2_0", 42, 64, 18, MappingProxyType({"d": 0, "qs": 2})),
    "TQ1_0": Layout("TQ1_0", 34, 256, 54, MappingProxyType({"qs": 0, "qh": 48, "d": 52})),
    "TQ2_0": Layout("TQ2_0", 35, 256, 66, MappingProxyType({"qs": 0, "d": 64})),
    "MXFP4": Layout("MXFP4", 39, 32, 17, MappingProxyType({"e": 0, "qs": 1})),
    "NVFP4": Layout("NVFP4", 40, 64, 36, MappingProxyType({"d": 0, "qs": 4})),
    "IQ4_NL": Layout("IQ4_NL", 20, 32, 18, MappingProxyType({"d": 0, "qs": 2})),
    "IQ4_XS": Layout(
        "IQ4_XS", 23, 256, 136, MappingProxyType({"d": 0, "scales_h": 2, "scales_l": 4, "qs": 8})
    ),
    "IQ2_XXS": Layout("IQ2_XXS", 16, 256, 66, MappingProxyType({"d": 0, "qs": 2})),
    "IQ2_XS": Layout("IQ2_XS", 17, 256, 74, MappingProxyType({"d": 0, "qs": 2, "scales": 66})),
    "IQ2_S": Layout(
        "IQ2_S",
        22,
        256,
        82,
        MappingProxyType({"d": 0, "qs": 2, "signs": 34, "qh": 66, "scales": 74}),
    ),
    "IQ3_XXS": Layout("IQ3_XXS", 18, 256, 98, MappingProxyType({"d": 0, "qs": 2, "scales": 66})),
    "IQ3_S": Layout(
        "IQ3_S",
        21,
        256,
        110,
        MappingProxyType({"d": 0, "qs": 2, "qh": 66, "signs": 74, "scales": 106}),
    ),
    "IQ1_S": Layout("IQ1_S", 19, 256, 50, MappingProxyType({"d": 0, "qs": 2, "qh": 34})),
    "IQ1_M": Layout("IQ1_M", 29, 256, 56, MappingProxyType({"qs": 0, "qh": 32, "scales": 48})),
}


def cpp_header() -> str:
    """Return the C++ header text: one struct of constants per block layout."""
    lines = ["// Generated from kernels/layouts.py.", "#pragma once", "", "namespace halfbyte {"]
    for layout in LAYOUTS.values():
        ggml_id = -1 if layout.ggml_id is None else layout.ggml_id
        constants = {"kGgmlId": ggml_id, "kValues": layout.values, "kBytes": layout.bytes}
        constants |= {f"kOffset_{name}": offset for name, offset in layout.offsets.items()}
        lines.append(f"struct Layout_{layout.name} {{")
        lines += [
            f"    static constexpr int {name} = {value};" for name, value in constants.items()
        ]
        lines.append("};")
    return "\n".join([*lines, "}  // namespace halfbyte", ""])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(cpp_header(), encoding="utf-8")
