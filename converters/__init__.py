"""Formats: detect, read and write models."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError

if TYPE_CHECKING:
    from halfbyte.converters.format import Format, ReadOptions
    from halfbyte.ir.model import Model

# Stricter tests first: the first that detects a path reads it. A folder with a checkpoint and ONNX
# files is `hf`; with ONNX files only it is `onnx`, whatever config lies there.
FORMATS: dict[str, str] = {
    "gguf": "halfbyte.converters.gguf.format:GGUF",
    "hb": "halfbyte.converters.native.format:NATIVE",
    "hf": "halfbyte.converters.hugging_face.format:HUGGING_FACE",
    "onnx": "halfbyte.converters.onnx.format:ONNX",
}


def get_format(name: str) -> Format:
    """Return the format called `name`.

    Raises:
        UnsupportedError: there is no such format.
    """
    if name not in FORMATS:
        raise UnsupportedError(f"format {name!r}", "--to", sorted(FORMATS))
    module, attribute = FORMATS[name].split(":")
    return cast("Format", getattr(import_module(module), attribute))


def detect(path: Path) -> Format:
    """Return the format of the file or folder at `path`, judged by content.

    Raises:
        HalfbyteError: nothing is there.
        FormatError: the content is of no known format.
    """
    if not path.exists():
        raise HalfbyteError(f"{path}: no such file or folder; check the path")
    for name in FORMATS:
        candidate = get_format(name)
        if candidate.detect(path):
            return candidate
    known = ", ".join(FORMATS)
    raise FormatError(path, f"content is none of the known formats ({known}); check the path")


def format_for_output(path: Path, to: str = "") -> tuple[Format, str]:
    """Return format and flavour for an output path, from `to` or from the path's ending.

    Raises:
        UnsupportedError: `to` names no format.
    """
    if to:
        name, _, flavour = to.partition(":")
        return get_format(name), flavour
    for name in FORMATS:
        candidate = get_format(name)
        if path.suffix.lower() in candidate.extensions:
            return candidate, ""
    if path.suffix:
        raise UnsupportedError(
            f"ending {path.suffix!r}",
            str(path),
            [".gguf", ".hb", ".onnx", "a folder"],
            "or give --to",
        )
    return get_format("hf"), ""


def read(path: Path, options: ReadOptions | None = None) -> Model:
    """Return the model at `path`, whatever its format."""
    from halfbyte.converters.format import ReadOptions

    return detect(path).read(path, options or ReadOptions())
