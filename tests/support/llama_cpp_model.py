"""A GGUF file loaded in llama.cpp (llama-cpp-python), with float32 caches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

THREADS = 1  # its threads wait by spinning, which hurts where tests run side by side


class LlamaCppModel:
    """A model in llama.cpp; use as a context manager."""

    def __init__(self, path: Path, context: int = 256, vocabulary_only: bool = False) -> None:
        """Load a file, or skip the test where llama-cpp-python is not installed."""
        self.library: Any = pytest.importorskip("llama_cpp")
        self._llama = self.library.Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            n_threads=THREADS,
            n_threads_batch=THREADS,
            logits_all=True,
            vocab_only=vocabulary_only,
            type_k=self.library.GGML_TYPE_F32,
            type_v=self.library.GGML_TYPE_F32,
            flash_attn=False,
            verbose=False,
        )

    def __enter__(self) -> LlamaCppModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._llama.close()

    def tokenize(self, text: str, add_special: bool = False) -> list[int]:
        """Return the ids of a text; special tokens written in it stay text."""
        return list(self._llama.tokenize(text.encode(), add_bos=add_special, special=False))

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return [ids, vocabulary] for a text run in one batch from an empty cache."""
        self._llama.reset()
        self._llama.eval(list(ids))
        return np.array(self._llama.scores[: len(ids)], np.float32)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """Return the `count` most probable next ids, one by one."""
        self._llama.reset()
        self._llama.eval(list(prompt))
        found: list[int] = []
        while len(found) < count:
            found.append(int(self._llama.scores[self._llama.n_tokens - 1].argmax()))
            self._llama.eval(found[-1:])
        return found
