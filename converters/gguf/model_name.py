"""What a model's name says: basename, size, finetune and version, as llama.cpp's script reads it.

Source: the naming convention in docs/gguf.md of ggml, `Metadata` of gguf-py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_VERSION = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_TYPE = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE = re.compile(
    r"([A]|\d+[x])?\d+([._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl", re.IGNORECASE
)
_FINETUNE = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_KEPT_AS_WRITTEN = re.compile(r"v\d+(?:\.\d+)*|\d.*")
_SCALES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class NameParts:
    """The parts of a model id; the empty string stands for a part that it does not say."""

    name: str = ""
    organization: str = ""
    basename: str = ""
    finetune: str = ""
    version: str = ""
    size_label: str = ""


@dataclass
class _Word:
    text: str
    kinds: set[str] = field(default_factory=set)


def title(text: str) -> str:
    """Return a name as people write it: words apart, capitalised unless they are so already."""
    words = text.strip().replace("-", " ").split()
    return " ".join(
        word.title() if word.islower() and not _KEPT_AS_WRITTEN.fullmatch(word) else word
        for word in words
    )


def name_parts(model_id: str, parameters: int = 0) -> NameParts:
    """Return the parts of `organization/name` or of a bare name.

    parameters: of the model, to tell its size from a context length; negative for an adapter, whose
    count is not exact; 0 if unknown.
    """
    if " " in model_id:
        return NameParts(model_id)
    organization, slash, name = model_id.partition("/")
    if not slash:
        organization, name = "", model_id
    if organization.startswith("."):
        organization = ""
    words = [
        _word(text, index, parameters) for index, text in enumerate(filter(None, name.split("-")))
    ]
    _drop_worded_sizes(words)
    _mark_basename(words)
    sizes = dict.fromkeys(word.text for word in words if "size" in word.kinds)
    version = (w.text for w in words if "version" in w.kinds and "basename" not in w.kinds)
    found = NameParts(
        name, organization, _joined(words, "basename"), _joined(words, "finetune"),
        "-".join(version), "-".join(sizes),
    )  # fmt: skip
    if found.size_label or found.finetune or found.version:
        return found
    return NameParts(name, organization)


def _joined(words: list[_Word], kind: str) -> str:
    return "-".join(word.text for word in words if kind in word.kinds)


def _word(text: str, index: int, parameters: int) -> _Word:
    if _VERSION.fullmatch(text):
        return _Word(text, {"version"})
    if _TYPE.fullmatch(text):
        return _Word(text.upper(), {"type"})
    if index and _SIZE.fullmatch(text):
        return _size(text, parameters)
    if index and _FINETUNE.fullmatch(text):
        is_said_anyway = parameters < 0 and text.lower() == "lora"
        return _Word(text, {"type" if is_said_anyway else "finetune"})
    return _Word(text)


def _size(text: str, parameters: int) -> _Word:
    text = text.replace("_", ".")
    if text[-1].isdecimal():  # 7b1 is 7.1b
        text = f"{text[:-2]}.{text[-1]}{text[-2]}"
    if len(text) > 1 and text[-2].isdecimal() and text[-1] in "kmbt":
        text = text[:-1] + text[-1].upper()
    if parameters and _is_context_length(text, parameters):
        return _Word(text[:-1] + text[-1].lower(), {"finetune"})
    return _Word(text, {"size"})


def _is_context_length(text: str, parameters: int) -> bool:
    """Whether a size is so far from the number of parameters that it means something else."""
    try:
        said = float(text[:-1]) * _SCALES.get(text[-1], 0.0)
    except ValueError:
        return False
    if parameters < 0:
        return said < -parameters // 8
    return abs(said - parameters) > 7 * parameters // 8


def _drop_worded_sizes(words: list[_Word]) -> None:
    sizes = [word for word in words if "size" in word.kinds]
    if any(character.isdecimal() for word in sizes for character in word.text):
        for word in sizes:
            if word.text.isalpha():
                word.kinds.remove("size")


def _mark_basename(words: list[_Word]) -> None:
    """Mark the leading words as basename, later ones that mean nothing else as finetune."""
    at_start = True
    for word in words:
        plain = not word.kinds and word.text[0].isalpha()
        at_start = at_start and (plain or "version" in word.kinds)
        if at_start:
            word.kinds.add("basename")
        elif not word.kinds:
            word.kinds.add("finetune")
    for word in reversed(words):
        if "basename" not in word.kinds or len(word.kinds) < 2:
            break
        word.kinds.remove("basename")
