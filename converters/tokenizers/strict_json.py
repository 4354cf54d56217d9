"""Parse JSON that nobody vouches for: bounded size, bounded nesting, one kind of error."""

from __future__ import annotations

import json
from typing import Any

from halfbyte.errors import FormatError

MAX_JSON_BYTES = 256 << 20


def parse_object(data: bytes | str, where: str) -> dict[str, Any]:
    """Return the JSON object in `data`.

    Raises:
        FormatError: too long, not UTF-8, not JSON, nested too deeply, or not an object.
    """
    if len(data) > MAX_JSON_BYTES:
        raise FormatError(where, f"{len(data)} bytes of JSON, at most {MAX_JSON_BYTES} are read")
    try:
        value = json.loads(data)
    except RecursionError:
        raise FormatError(where, "JSON is nested too deeply") from None
    except ValueError as error:
        raise FormatError(where, f"not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise FormatError(where, f"a JSON {type(value).__name__}, an object is required")
    return value


def member(document: dict[str, Any], name: str, kind: type, where: str) -> Any:
    """Return a required member of a JSON object.

    Raises:
        FormatError: it is missing or of another type.
    """
    value = document.get(name)
    if not isinstance(value, kind):
        found = "missing" if name not in document else f"a {type(value).__name__}"
        raise FormatError(where, f"{name!r} is {found}, a {kind.__name__} is required")
    return value
