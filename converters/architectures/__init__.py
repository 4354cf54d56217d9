"""Architectures: one file per Hugging Face model_type, found through a literal table."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from halfbyte.errors import UnsupportedError

if TYPE_CHECKING:
    from halfbyte.converters.architectures.architecture import Architecture

ARCHITECTURES: dict[str, str] = {
    "bert": "halfbyte.converters.architectures.bert:BERT",
    "gpt2": "halfbyte.converters.architectures.gpt2:GPT2",
    "llama": "halfbyte.converters.architectures.llama:LLAMA",
    "mistral": "halfbyte.converters.architectures.mistral:MISTRAL",
    "mixtral": "halfbyte.converters.architectures.mixtral:MIXTRAL",
    "qwen2": "halfbyte.converters.architectures.qwen2:QWEN2",
    "qwen2_moe": "halfbyte.converters.architectures.qwen2_moe:QWEN2_MOE",
    "qwen3": "halfbyte.converters.architectures.qwen3:QWEN3",
    "qwen3_moe": "halfbyte.converters.architectures.qwen3_moe:QWEN3_MOE",
}

ALIASES: dict[str, str] = {
    "smollm": "llama",
}


def get_architecture(model_type: str) -> Architecture:
    """Return the architecture of a Hugging Face model_type or of one of its aliases.

    Raises:
        UnsupportedError: there is no such architecture.
    """
    name = ALIASES.get(model_type, model_type)
    if name not in ARCHITECTURES:
        supported = sorted([*ARCHITECTURES, *ALIASES])
        raise UnsupportedError(f"architecture {model_type!r}", "model_type", supported)
    module, attribute = ARCHITECTURES[name].split(":")
    return cast("Architecture", getattr(import_module(module), attribute))
