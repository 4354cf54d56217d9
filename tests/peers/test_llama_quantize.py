"""Whole files: types and bytes that the plan gives equal those of llama.cpp's quantizer.

Q6_K, which llama.cpp gives to output heads, does not exist here yet: it is told to take Q8_0.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from support.gguf_models import read, write
from support.random_models import random_model

pytestmark = pytest.mark.peer
FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
Q8_0 = 8


def llama_quantize(source: Path, target: Path, name: str, tied: bool) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[name]
    params.nthread = 2
    if name.startswith("Q"):
        params.output_tensor_type = Q8_0
        if tied:
            params.token_embedding_type = Q8_0
    done = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert done == 0


@pytest.mark.parametrize("name", list(FILE_TYPES))
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gpt2"])
def test_quantized_files_equal_llama_cpp(name: str, model_type: str, tmp_path: Path) -> None:
    source, ours, theirs = (tmp_path / f"{stem}.gguf" for stem in ("source", "ours", "theirs"))
    tied = model_type in ("qwen2", "gpt2")
    model = random_model(model_type, tie_word_embeddings=tied)
    write(model, source, "F32")
    llama_quantize(source, theirs, name, tied)
    write(read(source), ours, name)
    mine, expected = read(ours).weights, read(theirs).weights
    assert mine.keys() == expected.keys()
    for key, tensor in expected.items():
        assert mine[key].encoding == tensor.encoding, key
        for part, stored in tensor.read().items():
            np.testing.assert_array_equal(
                mine[key].read()[part].view(np.uint8), stored.view(np.uint8), err_msg=key
            )
