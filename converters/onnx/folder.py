"""Folders that hold an ONNX model: which of their files it is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from halfbyte.errors import FormatError
from halfbyte.files import contained

ENDING = ".onnx"
GENAI_FILE = "genai_config.json"
# Exporters put the model at the top, or into this folder beside config and tokenizer.
INNER = "onnx"
TOKENIZER_FILE = "tokenizer.json"
MAX_GENAI_BYTES = 16_000_000
SHOWN = 8


def onnx_files(folder: Path) -> list[str]:
    """Return the `.onnx` files at the top of a folder and in its folder `onnx`, by name."""
    found = [path for place in (folder, folder / INNER) for path in place.glob(f"*{ENDING}")]
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def holds_onnx(folder: Path) -> bool:
    """Whether a folder has ONNX files, or onnxruntime-genai's config that names one."""
    return (folder / GENAI_FILE).is_file() or bool(onnx_files(folder))


def model_file(path: Path) -> Path:
    """Return the ONNX file that a path stands for: itself, or the one model of a folder.

    genai_config.json names it; otherwise it must be the only one there.

    Raises:
        FormatError: there are several files, or the config names none that is there.
    """
    if not path.is_dir():
        return path
    if (path / GENAI_FILE).is_file():
        name = genai_model(read_genai(path / GENAI_FILE), path / GENAI_FILE)
        file = contained(path, name)
        if not file.is_file():
            rule = f"names the model {name!r}, which is not there; put it beside or name the file"
            raise FormatError(path / GENAI_FILE, rule)
        return file
    names = onnx_files(path)
    if len(names) != 1:
        raise FormatError(path, f"{listed(names)}, one was required; name the file")
    return path / names[0]


def text_folder(path: Path) -> Path:
    """Return where the config and the tokenizer of an ONNX file lie: beside it, or above `onnx`."""
    beside, above = path.parent, path.parent.parent
    is_inner = beside.name == INNER and not (beside / TOKENIZER_FILE).is_file()
    return above if is_inner and (above / TOKENIZER_FILE).is_file() else beside


def listed(names: Iterable[str]) -> str:
    """Return how many models lie somewhere, with the first names."""
    names = list(names)
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} ONNX models lie there ({shown})"


def read_genai(path: Path) -> dict[str, Any]:
    """Return onnxruntime-genai's config.

    Raises:
        FormatError: it is too large or no JSON object.
    """
    from halfbyte.converters.hugging_face.safetensors import parse_json

    if path.stat().st_size > MAX_GENAI_BYTES:
        raise FormatError(path, f"passes {MAX_GENAI_BYTES} bytes; it is damaged")
    return parse_json(path.read_bytes(), path, GENAI_FILE)


def genai_model(config: dict[str, Any], where: Path) -> str:
    """Return the file that a config of onnxruntime-genai names as the decoder.

    Raises:
        FormatError: it names none.
    """
    found: Any = config
    for key in ("model", "decoder", "filename"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, str) or not found:
        rule = "has no model.decoder.filename, the name of the model was required; name the file"
        raise FormatError(where, rule)
    return found
