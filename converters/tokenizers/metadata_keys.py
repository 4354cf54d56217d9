"""Typed access to GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from halfbyte.errors import FormatError


class Keys:
    """Metadata whose values may be plain or carry `.value`."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Look at metadata."""
        self.metadata = metadata

    def get(self, key: str) -> Any:
        """Return a plain value, None where the key is missing."""
        value = self.metadata.get(key)
        return getattr(value, "value", value)

    def fail(self, key: str, rule: str) -> FormatError:
        """Return the error to raise about a key."""
        return FormatError("GGUF metadata", f"{key} {rule}")

    def text(self, key: str) -> str | None:
        """Return a text, None where the key is missing.

        Raises:
            FormatError: the value is of another type.
        """
        value = self.get(key)
        if isinstance(value, bytes):
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError:
                raise self.fail(key, "is not UTF-8 text") from None
        if value is not None and not isinstance(value, str):
            raise self.fail(key, f"is a {type(value).__name__}, text is required")
        return value

    def flag(self, key: str) -> bool | None:
        """Return true or false, None where the key is missing.

        Raises:
            FormatError: the value is of another type.
        """
        value = self.get(key)
        if value is not None and not isinstance(value, bool | np.bool_):
            raise self.fail(key, f"is {str(value)[:40]!r}, true or false is required")
        return None if value is None else bool(value)

    def integer(self, key: str) -> int | None:
        """Return a whole number, None where the key is missing.

        Raises:
            FormatError: the value is of another type.
        """
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise self.fail(key, f"is {str(value)[:40]!r}, a number is required")
        return int(value)

    def texts(self, key: str) -> list[str]:
        """Return a list of texts, empty where the key is missing.

        Raises:
            FormatError: the value is of another type.
        """
        values = self.get(key)
        if values is None:
            return []
        if not isinstance(values, list | tuple | np.ndarray):
            raise self.fail(key, f"is a {type(values).__name__}, a list of texts is required")
        found = [_decoded(value) for value in values] if bytes in set(map(type, values)) else values
        if not set(map(type, found)) <= {str, np.str_}:
            raise self.fail(key, "holds something that is not text")
        return list(map(str, found)) if isinstance(found, np.ndarray) else list(found)

    def numbers(
        self, key: str, kinds: str, count: int | None = None
    ) -> np.ndarray[Any, Any] | None:
        """Return a list of numbers of the given numpy kinds, None where the key is missing.

        Raises:
            FormatError: the value is of another type.
        """
        values = self.get(key)
        if values is None:
            return None
        if not isinstance(values, list | tuple | np.ndarray):
            raise self.fail(key, f"is a {type(values).__name__}, a list of numbers is required")
        try:
            array = np.asarray(values)
        except ValueError:
            array = np.zeros((0, 0))
        if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
            raise self.fail(key, f"has {array.dtype} elements, which are not of the right kind")
        if count is not None and len(array) != count:
            raise self.fail(key, f"has {len(array)} entries, the vocabulary {count} tokens")
        return array


def _decoded(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
