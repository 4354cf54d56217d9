"""Check a SentencePiece `precompiled_charsmap` before any code walks it.

    u32 size of the trie in bytes | trie: u32 units (double array) | NUL-terminated replacements

A unit holds a label in bits 0 to 7, "has a value" in bit 8 and an offset in bits 10 to 30, shifted
left by 8 when bit 9 is set; a unit with bit 31 set is a value: an offset into the replacements.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import FormatError

MAX_DEPTH = 256


def check_charsmap(blob: bytes, where: str = "precompiled_charsmap") -> None:
    """Check that every walk through the map stays inside it.

    Raises:
        FormatError: sizes, links or replacement offsets lie outside the map.
    """
    if not blob:
        return
    if len(blob) < 4:
        raise FormatError(where, f"{len(blob)} bytes, the size header alone has 4")
    size = int.from_bytes(blob[:4], "little")
    if size % 4 or size == 0 or size + 4 >= len(blob):
        raise FormatError(where, f"its trie claims {size} bytes of {len(blob) - 4}", 0)
    units = np.frombuffer(blob, "<u4", size // 4, 4).astype(np.int64)
    replacements = blob[4 + size :]
    if replacements[-1]:
        raise FormatError(where, "the last replacement has no terminating NUL")
    _walk(units, len(replacements), where)


def _children_base(units: NDArray[np.int64], nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    unit = units[nodes]
    shift = (unit >> 6) & 8
    found: NDArray[np.int64] = np.bitwise_xor(nodes, (unit >> 10 & 0x1FFFFF) << shift)
    return found


def _walk(units: NDArray[np.int64], replacement_bytes: int, where: str) -> None:
    labels = np.arange(1, 256, dtype=np.int64)
    seen = np.zeros(len(units), bool)
    nodes = np.zeros(1, np.int64)
    for _ in range(MAX_DEPTH):
        base = _children_base(units, nodes)
        has_value = (units[nodes] >> 8 & 1).astype(bool)
        if (base | 0xFF).max(initial=0) >= len(units) or base.min(initial=0) < 0:
            raise FormatError(where, "a link of its trie leads outside the trie")
        values = units[base[has_value]] & 0x7FFFFFFF
        if values.max(initial=0) >= replacement_bytes:
            raise FormatError(where, "a replacement offset lies outside the replacements")
        children = (base[:, None] ^ labels).reshape(-1)
        wanted = np.tile(labels, len(base))
        found = (units[children] & 0x800000FF) == wanted
        nodes = np.unique(children[found])
        nodes = nodes[~seen[nodes]]
        if not len(nodes):
            return
        seen[nodes] = True
    raise FormatError(where, f"its trie is more than {MAX_DEPTH} levels deep")


class Charsmap:
    """Looks up replacements in a checked map."""

    def __init__(self, blob: bytes) -> None:
        """Take a map that `check_charsmap` has passed, or nothing."""
        size = int.from_bytes(blob[:4], "little")
        self._units = np.frombuffer(blob, "<u4", size // 4, 4).tolist() if blob else []
        self._replacements = blob[4 + size :]
        self.spans_spaces = any(unit & 0x800000FF == 0x20 for unit in self._units)

    def longest(self, data: bytes, start: int) -> tuple[int, bytes] | None:
        """Return the length of the longest entry at a place of a text, and its replacement."""
        if not self._units:
            return None
        units = self._units
        found = None
        node = _offset(units[0])
        for end in range(start, len(data)):
            node ^= data[end]
            unit = units[node]
            if unit & 0x800000FF != data[end] or not data[end]:
                break
            node ^= _offset(unit)
            if unit >> 8 & 1:
                at = units[node] & 0x7FFFFFFF
                value = self._replacements[at : self._replacements.index(b"\0", at)]
                found = (end + 1 - start, value)
        return found


def _offset(unit: int) -> int:
    return (unit >> 10 & 0x1FFFFF) << (unit >> 6 & 8)
