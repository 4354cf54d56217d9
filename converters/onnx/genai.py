"""The files that onnxruntime-genai wants beside a model: its config and the tokenizer."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from halfbyte.ir.graph import Graph
from halfbyte.ir.model import Model

CONFIG_FILE = "genai_config.json"
# What onnxruntime-genai calls the decoders that it runs in one way: tokens in, logits out.
TYPES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gpt2": "gpt2",
}
OTHER_TYPE = "decoder"
PAST, PRESENT = "past_key_values.%d.{}", "present.%d.{}"
log = logging.getLogger("halfbyte")


def genai_files(model: Model, graph: Graph, filename: str) -> dict[str, bytes]:
    """Return the files by name: genai_config.json and the tokenizer's."""
    found = {CONFIG_FILE: _json(genai_config(model, graph, filename))}
    found.update(_tokenizer_files(model))
    return found


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=4, ensure_ascii=False) + "\n").encode("utf-8")


def _tokenizer_files(model: Model) -> dict[str, bytes]:
    if model.tokenizer is None:
        return {}
    from halfbyte.converters.tokenizers import to_hugging_face

    return dict(to_hugging_face(model.tokenizer))


def genai_config(model: Model, graph: Graph, filename: str) -> dict[str, Any]:
    """Return genai_config.json for a decoder written as `filename`."""
    config = model.config
    names = {value.name for value in graph.inputs}
    inputs: dict[str, str] = {
        str(name): str(name)
        for name in ("input_ids", "attention_mask", "position_ids")
        if name in names
    }
    inputs |= {f"past_{kind}_names": PAST.format(kind) for kind in ("key", "value")}
    outputs = {"logits": "logits"}
    outputs |= {f"present_{kind}_names": PRESENT.format(kind) for kind in ("key", "value")}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": filename,
        "head_size": config["head_dim"],
        "hidden_size": config["hidden_size"],
        "inputs": inputs,
        "outputs": outputs,
        "num_attention_heads": config["num_attention_heads"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_key_value_heads": config["num_key_value_heads"],
    }
    length = config["max_position_embeddings"]
    return {
        "model": {
            **_special_ids(model),
            "context_length": length,
            "decoder": decoder,
            "type": TYPES.get(model.architecture, OTHER_TYPE),
            "vocab_size": config["vocab_size"],
        },
        "search": _search(model.generation_config, length),
    }


def _special_ids(model: Model) -> dict[str, Any]:
    """Return the ids of begin, end and padding; every id that ends a text counts as end."""
    generation = model.generation_config
    known = {} if model.tokenizer is None else dict(model.tokenizer.special_ids)

    def first(key: str, name: str) -> Any:
        for source in (generation, model.config):
            if source.get(key) is not None:
                return source[key]
        return known.get(name)

    listed = first("eos_token_id", "eos")
    ends = list(listed) if isinstance(listed, list) else [] if listed is None else [listed]
    if model.tokenizer is not None:
        ends += [index for index in sorted(model.tokenizer.stop_ids) if index not in ends]
    if not ends:
        log.warning("no id ends a text in %s: onnxruntime-genai stops at max_length", CONFIG_FILE)
    end: Any = ends[0] if len(ends) == 1 else ends
    begin = first("bos_token_id", "bos")
    padding = first("pad_token_id", "pad")
    return {
        "bos_token_id": begin if begin is not None else (ends or [0])[0],
        "eos_token_id": end if ends else [],
        "pad_token_id": padding if padding is not None else (ends or [0])[0],
    }


def _search(generation: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return how to choose tokens, from the model's own generation settings."""
    defaults: dict[str, Any] = {
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    }
    chosen = {
        key: generation[key] if generation.get(key) is not None else value
        for key, value in defaults.items()
    }
    return {
        **chosen,
        "diversity_penalty": 0.0,
        "early_stopping": True,
        "length_penalty": 1.0,
        "max_length": length,
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
    }
