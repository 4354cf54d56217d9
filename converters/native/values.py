"""JSON for values of any kind that metadata may hold.

Plain JSON stays plain. What JSON cannot say becomes an object with one `$` key: `$base64` bytes,
`$float` inf and nan, `$tuple`, `$items` (a dict whose keys are not plain strings), `$array`
[dtype, shape, base64] and `$gguf` [type, element type, value].
"""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.converters.hugging_face.safetensors import CODES, DTYPES, parse_json
from halfbyte.errors import FormatError, UnsupportedError

_TAGS = frozenset({"$base64", "$float", "$tuple", "$items", "$array", "$gguf"})


def dump(value: Any) -> str:
    """Return JSON text of a value; non-ASCII characters are escaped, lone surrogates too.

    Raises:
        UnsupportedError: the value is of a type without a JSON form.
    """
    return json.dumps(_encode(value), separators=(",", ":"), allow_nan=False)


def load(text: str | bytes, path: Path, what: str) -> Any:
    """Return the value that `dump` wrote.

    Raises:
        FormatError: the text is not such a document.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    wrapped = parse_json(b'{"value":' + raw + b"}", path, what)
    try:
        return _decode(wrapped["value"])
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise FormatError(path, f"{what} holds a value that cannot be read ({error})") from None


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, bytes):
        return {"$base64": _base64(value)}
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return _encode_dict(value)
    if isinstance(value, np.ndarray) and value.dtype.name in CODES:
        raw = np.ascontiguousarray(value).tobytes()
        return {"$array": [value.dtype.name, list(value.shape), _base64(raw)]}
    return _encode_gguf(value)


def _encode_dict(value: dict[Any, Any]) -> Any:
    if all(isinstance(key, str) for key in value) and _TAGS.isdisjoint(value):
        return {key: _encode(item) for key, item in value.items()}
    return {"$items": [[_encode(key), _encode(item)] for key, item in value.items()]}


def _encode_gguf(value: Any) -> Any:
    from halfbyte.converters.gguf.metadata_value import MetadataValue

    if not isinstance(value, MetadataValue):
        raise UnsupportedError(f"metadata of type {type(value).__name__}", "--to hb")
    element = None if value.element_type is None else int(value.element_type)
    return {"$gguf": [int(value.type), element, _encode(value.value)]}


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and not _TAGS.isdisjoint(value):
        tag, content = next(iter(value.items()))
        return _decode_tagged(tag, content)
    return {key: _decode(item) for key, item in value.items()}


def _decode_tagged(tag: str, content: Any) -> Any:
    if tag == "$base64":
        return base64.b64decode(content, validate=True)
    if tag == "$float":
        return float(content)
    if tag == "$tuple":
        return tuple(_decode(item) for item in content)
    if tag == "$items":
        return {_decode(key): _decode(item) for key, item in content}
    if tag == "$array":
        dtype, shape, raw = content
        array = np.frombuffer(base64.b64decode(raw, validate=True), DTYPES[CODES[dtype]])
        return array.reshape(shape).copy()
    return _decode_gguf(*content)


def _decode_gguf(kind: int, element: int | None, value: Any) -> Any:
    from halfbyte.converters.gguf.ggml_types import ValueType
    from halfbyte.converters.gguf.metadata_value import MetadataValue

    element_type = None if element is None else ValueType(element)
    return MetadataValue(_decode(value), ValueType(kind), element_type)
