"""The `general.*` keys of a new GGUF file, from model card, config, name and sampling settings.

Keys, order and heuristics are those of llama.cpp's conversion script, so that a file says the same
of its origin whichever tool wrote it. Nothing here changes what a model computes.

Source: gguf-py/gguf/metadata.py and utility.py of llama.cpp.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from halfbyte.converters.gguf.model_name import NameParts, name_parts, title
from halfbyte.ir.model import Model

CARD_FILE = "README.md"
MAX_FRONT_MATTER = 1 << 20
MAX_ENTRIES = 1024
_HUB = re.compile(r"https?://huggingface.co/([^/]+/[^/]+)")
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth")
log = logging.getLogger("halfbyte")

# key after `general.`: keys of the card, the first that says something counts
_CARD_KEYS: dict[str, tuple[str, ...]] = {
    "name": ("name", "model_name"),
    "author": ("author", "model_author", "model_creator"),
    "version": ("version", "model_version"),
    "organization": ("organization", "model_organization"),
    "finetune": ("finetune", "model_finetune"),
    "basename": ("basename", "model_basename", "model_type"),
    "description": ("description", "model_description"),
    "size_label": ("size_label", "model_size_label"),
    "license": ("license",),
    "license.name": ("license_name",),
    "license.link": ("license_link",),
    "source.url": ("url", "model_url"),
    "source.doi": ("doi", "model_doi"),
    "source.uuid": ("uuid", "model_uuid"),
    "source.repo_url": ("repo_url", "model_repo_url"),
}
_FROM_NAME = ("name", "version", "organization", "finetune", "basename", "size_label")
_RELATED_KEYS = (
    "name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url",
)  # fmt: skip
_RELATIONS = {
    "base_model": ("base_model", "base_models", "base_model_sources"),
    "dataset": ("datasets", "dataset", "dataset_sources"),
}
_SAMPLING: dict[str, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
    "sequence": (("sequence",), str),
    "top_k": (("top_k",), np.int32),
    "top_p": (("top_p",), np.float32),
    "min_p": (("min_p",), np.float32),
    "xtc_probability": (("xtc_probability",), np.float32),
    "xtc_threshold": (("xtc_threshold",), np.float32),
    "temp": (("temperature",), np.float32),
    "penalty_last_n": (("penalty_last_n",), np.int32),
    "penalty_repeat": (("penalty_repeat", "repetition_penalty"), np.float32),
    "mirostat": (("mirostat",), np.int32),
    "mirostat_tau": (("mirostat_tau",), np.float32),
    "mirostat_eta": (("mirostat_eta",), np.float32),
}
SAMPLING_PREFIX = "general.sampling."


def general_keys(
    model: Model, architecture: str, kind: str, parameters: int, size: str = ""
) -> dict[str, Any]:
    """Return the keys that open a file, in order.

    kind: "model" or "adapter". parameters: values of all tensors, negative for an adapter.
    size: what to call their number, if not by itself.
    """
    files = model.metadata.get("files") or {}
    found: dict[str, Any] = {}
    if architecture:
        found["general.architecture"] = architecture
    found["general.type"] = kind
    found |= sampling_keys(model.generation_config)
    names = [_config_name(files), model_id(model)]
    return found | authorship_keys(front_matter(files), names, parameters, size)


def sampling_keys(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return `general.sampling.*` for a generation config."""
    found: dict[str, Any] = {}
    for key, (names, convert) in _SAMPLING.items():
        value = next((generation[n] for n in names if generation.get(n) is not None), None)
        accepted = str if convert is str else (int, float)
        if isinstance(value, accepted) and not isinstance(value, bool):
            try:
                found[SAMPLING_PREFIX + key] = convert(value)
            except (OverflowError, ValueError):
                log.warning("generation config: %s %r is left out", names[-1], value)
    return found


def read_sampling(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return generation settings by Hugging Face name from plain `general.sampling.*` values."""
    found: dict[str, Any] = {}
    for key, (names, convert) in _SAMPLING.items():
        value = metadata.get(SAMPLING_PREFIX + key)
        if convert is str and isinstance(value, str):
            found[names[-1]] = value
        elif convert is not str and isinstance(value, (int, float)) and math.isfinite(value):
            is_whole = convert is np.int32
            # a float32 such as 0.6 is written as people write it
            found[names[-1]] = int(value) if is_whole else float(str(np.float32(value)))
    return found


def model_id(model: Model) -> str:
    """Return `organization/name` for a model of the hub, else the name of its file or folder."""
    origin = model.metadata.get("origin") or {}
    source = str(origin.get("source") or model.provenance.source)
    if origin.get("revision") or model.provenance.revision:
        return source
    path = Path(source).absolute()
    if path.suffix in _WEIGHT_FILES:
        return path.parent.name
    return path.stem if path.suffix in (".onnx", ".gguf", ".hb") else path.name


def front_matter(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the YAML head of a model card, {} where there is none that can be read."""
    lines = files.get(CARD_FILE, b"")[:MAX_FRONT_MATTER].decode("utf-8", "replace").splitlines()
    if not lines or lines[0] != "---":
        return {}
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    text = "\n".join(lines[1:end]) + "\n"
    # Norwegian's code would be read as false, and YAML refuses tabs
    text = text.replace("- no\n", '- "no"\n').replace("\t", "  ")
    import yaml

    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        log.warning("%s: its head is left out, it is not YAML (%s)", CARD_FILE, _first_line(error))
        return {}
    return found if isinstance(found, dict) else {}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _config_name(files: Mapping[str, bytes]) -> str:
    """Return `_name_or_path` of config.json if it can be a model id rather than a path."""
    try:
        found = json.loads(files.get("config.json", b"{}")).get("_name_or_path")
    except (ValueError, AttributeError, RecursionError):
        return ""
    is_id = isinstance(found, str) and found.count("/") <= 1 and "\\" not in found
    return str(found) if is_id else ""


def _text(value: Any) -> str:
    """Return a value of the card as text, the empty string where it is none."""
    if isinstance(value, list):
        return ",".join(filter(None, map(_text, value[:MAX_ENTRIES])))
    if value is None or isinstance(value, (bool, dict)):
        return ""
    return str(value)


def _texts(value: Any) -> list[str]:
    listed = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    return list(filter(None, map(_text, listed[:MAX_ENTRIES])))


def authorship_keys(
    card: Mapping[str, Any], names: Iterable[str], parameters: int, size: str = ""
) -> dict[str, Any]:
    """Return `general.name` and what follows it.

    names: ids of the model, the first that says something counts; the last one is never empty.
    """
    said = {
        key: next(filter(None, (_text(card.get(name)) for name in wanted)), "")
        for key, wanted in _CARD_KEYS.items()
    }
    last = ""
    for name in filter(None, names):
        last = name
        parts = name_parts(name, parameters)
        for key in _FROM_NAME:
            said[key] = said[key] or _from_name(parts, key)
    said["name"] = said["name"] or PurePosixPath(last).name or "model"
    if not said["size_label"] and parameters > 0:
        said["size_label"] = size or size_label(parameters)
    found: dict[str, Any] = {f"general.{key}": text for key, text in said.items() if text}
    for relation, wanted in _RELATIONS.items():
        found |= _related_keys(relation, card, wanted, parameters)
    tags = [*_texts(card.get("tags")), *_texts(card.get("pipeline_tag"))]
    languages = [*_texts(card.get("languages")), *_texts(card.get("language"))]
    if tags:
        found["general.tags"] = tags
    if languages:
        found["general.languages"] = languages
    return found


def _from_name(parts: NameParts, key: str) -> str:
    text = str(getattr(parts, key))
    return title(text) if key in ("name", "organization") else text


def _related_keys(
    relation: str, card: Mapping[str, Any], wanted: tuple[str, ...], parameters: int
) -> dict[str, Any]:
    """Return `general.base_model.*` or `general.dataset.*`."""
    named = next((name for name in wanted if name in card), None)
    if named is None:
        return {}
    entries = card[named] if isinstance(card[named], list) else [card[named]]
    kept = [e for e in entries[:MAX_ENTRIES] if isinstance(e, (str, dict))]
    found: dict[str, Any] = {f"general.{relation}.count": len(kept)}
    for number, entry in enumerate(kept):
        said = entry if isinstance(entry, dict) else dict(_related(entry, parameters))
        for key in _RELATED_KEYS:
            text = _text(said.get(key))
            if text:
                found[f"general.{relation}.{number}.{key}"] = text
    return found


def _related(entry: str, parameters: int) -> Iterator[tuple[str, str]]:
    """Yield what an id or an address says of another model or of a data set."""
    is_address = entry.startswith(("http://", "https://", "ssh://"))
    match = _HUB.fullmatch(entry) if is_address else None
    known = match[1] if match else "" if is_address else entry
    parts = name_parts(known, parameters)
    yield from (("name", title(parts.name)), ("organization", title(parts.organization)))
    yield "version", parts.version
    if is_address:
        yield "repo_url", entry
    elif parts.organization and parts.name:
        yield "repo_url", f"https://huggingface.co/{parts.organization}/{parts.name}"


def size_label(parameters: int) -> str:
    """Return a parameter count as in `general.size_label`: 135M, 1.1B."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters > scale or suffix == "K":
            break
    scaled = parameters / scale
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{scaled:.{max(2 - digits, 0)}f}{suffix}"
