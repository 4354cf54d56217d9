"""llama.cpp's tokenizer through llama-cpp-python, and vocabularies that show where text is cut."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.tokenizers.codec import BYTE_ALPHABET


class LlamaVocabulary:
    """One vocabulary loaded by llama.cpp."""

    def __init__(self, path: Path) -> None:
        """Load the metadata of a GGUF file, or skip the test."""
        self._api = pytest.importorskip("llama_cpp").llama_cpp
        self._quiet = self._api.llama_log_callback(lambda level, text, data: None)
        self._api.llama_log_set(self._quiet, ctypes.c_void_p(0))
        parameters = self._api.llama_model_default_params()
        parameters.vocab_only = True
        self._model = self._api.llama_model_load_from_file(str(path).encode(), parameters)
        assert self._model, f"llama.cpp refuses {path}"
        self._vocabulary = self._api.llama_model_get_vocab(self._model)

    def __enter__(self) -> LlamaVocabulary:
        return self

    def __exit__(self, *_: object) -> None:
        self._api.llama_model_free(self._model)

    def encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Return llama_tokenize's ids."""
        data = text.encode()
        size = len(data) + 16
        ids = (self._api.llama_token * size)()
        flags = (add_special, parse_special)
        count = self._api.llama_tokenize(self._vocabulary, data, len(data), ids, size, *flags)
        assert count >= 0
        return list(ids[:count])

    def piece(self, index: int) -> bytes:
        """Return llama_token_to_piece's bytes, special tokens shown."""
        buffer = ctypes.create_string_buffer(4096)
        count = self._api.llama_token_to_piece(self._vocabulary, index, buffer, 4096, 0, True)
        assert count >= 0
        return buffer.raw[:count]

    def is_end(self, index: int) -> bool:
        """Return whether llama.cpp ends a generation at a token."""
        return bool(self._api.llama_vocab_is_eog(self._vocabulary, index))


def write_metadata(path: Path, keys: Mapping[str, Any], architecture: str = "llama") -> Path:
    """Write a GGUF file that holds metadata alone."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, np.uint32 | int):
            writer.add_uint32(key, int(value))
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif key != "general.architecture":
            writer.add_array(key, value.tolist() if isinstance(value, np.ndarray) else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pair_keys(pre: str, texts: Sequence[str], seed: int, raw: bool) -> dict[str, Any]:
    """Return a BPE vocabulary with every pair of neighbours in some texts, ranked at random.

    Whether two neighbours may merge shows whether a cut lies between them.
    """
    letters = {byte: char for char, byte in BYTE_ALPHABET.items()}
    if raw:
        space = " " if pre == "whitespace" else "\u2581"
        spelled = [part.replace(" ", space) for text in texts for part in text.split("\0")]
        start = [f"<0x{byte:02X}>" for byte in range(256)]
        start += sorted({char for text in spelled for char in text})
    else:
        spelled = ["".join(letters[byte] for byte in text.encode()) for text in texts]
        start = list(BYTE_ALPHABET)
    pairs = sorted({(a, b) for text in spelled for a, b in pairwise(text)})
    pairs = [pair for pair in pairs if " " not in pair]
    random.Random(seed).shuffle(pairs)
    longer = [(a + b, c + d) for (a, b), (c, d) in pairwise(pairs)]
    merges = [*pairs, *(pair for pair in longer if pair[0] + pair[1] in "".join(spelled))]
    tokens = [*start, *(a + b for a, b in merges)]
    tokens = list(dict.fromkeys(tokens))
    start_name = "tokenizer.ggml."
    return {
        start_name + "model": pre if pre in ("gemma4", "whitespace") else "gpt2",
        start_name + "pre": pre,
        start_name + "tokens": tokens,
        start_name + "token_type": np.array(
            [6 if raw and index < 256 else 1 for index in range(len(tokens))], np.int32
        ),
        start_name + "merges": [f"{a} {b}" for a, b in merges],
        start_name + "bos_token_id": np.uint32(0),
        start_name + "eos_token_id": np.uint32(0),
    }
