"""A decoder built by onnxruntime-genai, run step by step with its cache against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.converters.onnx.reader import read_graph_model
from halfbyte.runtime.session import Session
from support.real_onnx import require_onnx

ort = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.peer

# Five layers whose sums run in another order.
CLOSE = 2e-5
STEPS = ([5, 77, 301, 12, 9], [44], [3], [17, 18])
Arrays = dict[str, np.ndarray]


def test_steps_with_a_cache_give_the_same() -> None:
    path = require_onnx("decoder_genai")
    theirs = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ours = Session(read_graph_model(path))
    names = [value.name for value in theirs.get_outputs()]
    held = [v.name for v in theirs.get_inputs() if v.name.startswith("past")]
    empty = np.zeros((1, 4, 0, head_size(path)), np.float32)
    left, right = dict.fromkeys(held, empty), dict.fromkeys(held, empty)
    total = 0
    for ids in STEPS:
        total += len(ids)
        feeds = {"input_ids": np.asarray([ids]), "attention_mask": np.ones((1, total), np.int64)}
        truth = dict(zip(names, theirs.run(names, feeds | left), strict=True))
        found = ours.run(feeds | right)
        for name in names:
            assert found[name].shape == truth[name].shape
            assert np.abs(found[name] - truth[name]).max() <= CLOSE * np.abs(truth[name]).max()
        left = {name: truth[name.replace("past_key_values", "present")] for name in held}
        right = {name: found[name.replace("past_key_values", "present")] for name in held}


def head_size(path: object) -> int:
    """Return twice the width of the cosine table."""
    import onnx

    stored = onnx.load(str(path)).graph.initializer
    return int(2 * next(t.dims[1] for t in stored if "cos_cache" in t.name))
