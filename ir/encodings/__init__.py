"""The table of encodings. A new one is one class and one line here."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from halfbyte.errors import UnsupportedError

if TYPE_CHECKING:
    from halfbyte.ir.encodings.encoding import Encoding

_HERE = "halfbyte.ir.encodings"

# Pattern of the names (whole match, case counts) -> "module:Class". The first match wins.
ENCODINGS: dict[str, str] = {
    r"float(64|32|16)|bfloat16|float[468]_e\w+|[iu](2|4|8|16|32|64)|complex\d+"
    r"|bool|string": f"{_HERE}.dense:Dense",
    r"F(64|32|16)|BF16|I(8|16|32|64)": f"{_HERE}.dense:Dense",
    r"int[2-8](-.+)?": f"{_HERE}.affine:Affine",
    r"int[2-8]-.+": f"{_HERE}.affine_offset:AffineOffset",
    r"Q4_0": f"{_HERE}.ggml_legacy:Q4_0",
    r"Q4_1": f"{_HERE}.ggml_legacy:Q4_1",
    r"Q5_0": f"{_HERE}.ggml_legacy:Q5_0",
    r"Q5_1": f"{_HERE}.ggml_legacy:Q5_1",
    r"Q8_0": f"{_HERE}.ggml_legacy:Q8_0",
    r"Q2_K": f"{_HERE}.ggml_k:Q2_K",
    r"Q3_K": f"{_HERE}.ggml_k:Q3_K",
    r"Q4_K": f"{_HERE}.ggml_k:Q4_K",
    r"Q5_K": f"{_HERE}.ggml_k:Q5_K",
    r"Q6_K": f"{_HERE}.ggml_k:Q6_K",
    r"IQ1_S": f"{_HERE}.ggml_iq1:IQ1_S",
    r"IQ1_M": f"{_HERE}.ggml_iq1:IQ1_M",
    r"IQ2_XXS": f"{_HERE}.ggml_iq2:IQ2_XXS",
    r"IQ2_XS": f"{_HERE}.ggml_iq2:IQ2_XS",
    r"IQ2_S": f"{_HERE}.ggml_iq2:IQ2_S",
    r"IQ3_XXS": f"{_HERE}.ggml_iq3:IQ3_XXS",
    r"IQ3_S": f"{_HERE}.ggml_iq3:IQ3_S",
    r"IQ4_NL": f"{_HERE}.ggml_iq4:IQ4_NL",
    r"IQ4_XS": f"{_HERE}.ggml_iq4:IQ4_XS",
    r"TQ1_0": f"{_HERE}.ggml_ternary:TQ1_0",
    r"TQ2_0": f"{_HERE}.ggml_ternary:TQ2_0",
    r"Q1_0": f"{_HERE}.ggml_low_bit:Q1_0",
    r"Q2_0": f"{_HERE}.ggml_low_bit:Q2_0",
    r"MXFP4": f"{_HERE}.ggml_fp4:MXFP4",
    r"NVFP4": f"{_HERE}.ggml_fp4:NVFP4",
    r"fp8(-.+)?|mxfp8": f"{_HERE}.float8:Float8",
    r"mxfp4": f"{_HERE}.fp4:MicroFloat4",
    r"nvfp4": f"{_HERE}.fp4:ScaledFloat4",
    r"(nf4|bnb-fp4)(-.+)?": f"{_HERE}.nf4:Quantile4",
}


def _load(target: str) -> type[Encoding]:
    module, name = target.split(":")
    found: type[Encoding] = getattr(importlib.import_module(module), name)
    return found


def _classes() -> Iterator[type[Encoding]]:
    for target in dict.fromkeys(ENCODINGS.values()):
        yield _load(target)


def list_encodings() -> list[Encoding]:
    """Return the encodings worth naming: every fixed one, and the usual ones of families."""
    return [encoding for cls in _classes() for encoding in cls.examples()]


def encoding_from_name(name: str) -> Encoding:
    """Return the encoding called `name`; `encoding_from_name(e.name) == e` for every encoding.

    Names count case: ggml types as published (`Q4_0`), dense types as numpy says (`float16`; GGUF's
    `F16`, `BF16`, ... mean the same), dense integers `i8`, affine types `int4-g128`.

    Raises:
        UnsupportedError: no encoding has this name; the nearest ones are named.
    """
    for pattern, target in ENCODINGS.items():
        if re.fullmatch(pattern, name):
            encoding = _load(target).from_name(name)
            if encoding is not None:
                return encoding
    raise UnsupportedError(f"encoding {name!r}", "encodings", _nearest(name))


def _nearest(name: str) -> list[str]:
    by_lower = {encoding.name.lower(): encoding.name for encoding in list_encodings()}
    close = difflib.get_close_matches(name.lower(), by_lower, n=5, cutoff=0.5)
    return [by_lower[found] for found in close] or list(by_lower.values())
