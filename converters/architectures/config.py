"""Typed, bounded reading of config values that come from a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from halfbyte.errors import FormatError, UnsupportedError

WHERE = "model config"
MAX_DIMENSION = 2**31 - 1
MAX_LAYERS = 4096
MAX_HEADS = 1 << 16


def reject(key: str, found: object, required: str) -> NoReturn:
    """Raise the error for a config value that breaks a rule."""
    shown = repr(found)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    raise FormatError(WHERE, f"{key} is {shown}, {required} was required; correct the config")


def as_integer(key: str, found: object, low: int = 1, high: int = MAX_DIMENSION) -> int:
    """Return an integer of [low, high].

    Raises:
        FormatError: the value is no integer or outside the range.
    """
    if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
        reject(key, found, f"an integer from {low} to {high}")
    return found


def as_number(key: str, found: object, low: float = 0.0, high: float = math.inf) -> float:
    """Return a finite number of [low, high].

    Raises:
        FormatError: the value is no number, not finite or outside the range.
    """
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if not is_number or not math.isfinite(found) or not low <= found <= high:  # type: ignore[arg-type, operator]
        required = "a finite number" + ("" if low == -math.inf else f" of at least {low:g}")
        reject(key, found, required + ("" if high == math.inf else f" and at most {high:g}"))
    return float(found)  # type: ignore[arg-type]


class ConfigReader:
    """Values of one raw config; a key that is absent or null takes its default."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        """Keep the raw mapping."""
        self.raw = raw

    def _find(self, names: Sequence[str]) -> tuple[str, Any]:
        for name in names:
            if self.raw.get(name) is not None:
                return name, self.raw[name]
        return names[0], None

    def integer(self, *names: str, default: int, low: int = 1, high: int = MAX_DIMENSION) -> int:
        """Return the first of `names` that is set, as an integer of [low, high]."""
        name, found = self._find(names)
        return as_integer(name, default if found is None else found, low, high)

    def optional_integer(self, name: str, high: int = MAX_DIMENSION) -> int | None:
        """Return a positive integer, or None where the key is absent or null."""
        found = self.raw.get(name)
        return None if found is None else as_integer(name, found, 1, high)

    def number(
        self, *names: str, default: float, low: float = 0.0, high: float = math.inf
    ) -> float:
        """Return the first of `names` that is set, as a finite number of [low, high]."""
        name, found = self._find(names)
        return as_number(name, default if found is None else found, low, high)

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth value."""
        found = self.raw.get(name)
        if found is None:
            return default
        if not isinstance(found, bool):
            reject(name, found, "true or false")
        return found

    def choice(self, *names: str, default: str, allowed: Sequence[str]) -> str:
        """Return the first of `names` that is set, one of `allowed`.

        Raises:
            UnsupportedError: another value is set.
        """
        name, found = self._find(names)
        value = default if found is None else found
        if value not in allowed:
            raise UnsupportedError(f"{name} {value!r}", WHERE, sorted(allowed))
        return str(value)

    def refuse(self, name: str, *accepted: object) -> None:
        """Refuse a feature: the key must be absent, null or one of `accepted`.

        Raises:
            UnsupportedError: the feature is on.
        """
        found = self.raw.get(name)
        if found is not None and found not in accepted:
            raise UnsupportedError(f"{name} {found!r}", WHERE, [repr(value) for value in accepted])
