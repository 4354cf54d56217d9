"""The .hb file: a safetensors file with conventions.

Arrays
    NAME                dense weight in its logical shape, or part "data" [rows, bytes] of blocks
    NAME:PART           parts of encodings that have several: codes, scales, zero_points, g_idx
    __graph__           graph text, UTF-8 as uint8
    __tokenizer__       tokenizer record, JSON as uint8
    __extra__           metadata of the source container, JSON as uint8 (see `values.py`)
    __files__/FILE      a text file that travels along (config.json, tokenizer.json ...), uint8

Header metadata (all strings)
    format              "halfbyte"
    halfbyte_format     version of this layout, "1"
    halfbyte_version    version of the writer
    config, generation_config, provenance      JSON objects
    tensors             JSON list of {name, shape, encoding, role, layer, kind}, in model order
    tokenizer_files     JSON list: files under __files__ that belong to the tokenizer record
    sha256              JSON object: array name -> SHA-256 of its bytes, for every array

The arrays lie widest type first, then by name, which aligns each to its element; the tables are in
the header because they are small, everything that may be large is an array.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.errors import HalfbyteError, UnsupportedError
from halfbyte.ir.encodings.encoding import Encoding, PartSpec
from halfbyte.ir.tensor import Tensor

FORMAT_NAME = "halfbyte"
FORMAT_VERSION = "1"
GRAPH = "__graph__"
TOKENIZER = "__tokenizer__"
EXTRA = "__extra__"
FILES = "__files__/"
RESERVED = "__"
SEPARATOR = ":"


def part_name(name: str, part: str, parts: Mapping[str, Any]) -> str:
    """Return the array name of one part: the weight's own if it has only `data`."""
    return name if set(parts) == {"data"} else f"{name}{SEPARATOR}{part}"


def stored_shape(tensor: Tensor, spec: PartSpec) -> tuple[int, ...]:
    """Return the shape in the header: the logical one for plain numbers."""
    return spec.shape if tensor.encoding.is_quantized else tensor.shape


def require_no_flavour(flavour: str) -> None:
    """Raise UnsupportedError when a flavour is given: .hb has none."""
    if flavour:
        raise UnsupportedError(f"flavour {flavour!r}", "--to hb", ["hb without a flavour"])


def check_encoding(encoding: Encoding, name: str) -> None:
    """Check for weight `name` that a reader finds the encoding again by its name.

    Raises:
        UnsupportedError: the encoding is not in the table.
    """
    from halfbyte.ir.encodings import encoding_from_name

    try:
        known = encoding_from_name(encoding.name) == encoding
    except HalfbyteError:
        known = False
    if not known:
        raise UnsupportedError(f"encoding {encoding} of {name!r}", "--to hb")
