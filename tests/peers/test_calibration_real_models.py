"""Real ONNX models in pieces: their linear layers meet what they meet in the whole graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte.quant.calibration.activations import ActivationStore
from halfbyte.quant.calibration.batches import Batches, completed, input_batches, token_batches
from halfbyte.quant.calibration.pieces import cut
from halfbyte.quant.calibration.streams import SiteRows, Stream
from halfbyte.runtime.session import Session
from halfbyte.verification.outputs import random_inputs
from support.real_onnx import require_onnx

NAMES = {
    "vit_op18": 13,
    "segformer_op13": 52,
    "wav2vec_op15": 14,
    "gpt2_op14": 9,
    "minilm_op14": 37,
    "decoder_op17": 36,
    "convnext_op17": 11,
}


class Recorder:
    """An observer that keeps the rows of the first run."""

    def __init__(self, names: list[str]) -> None:
        self._names = set(names)
        self.rows: dict[str, Any] = {}

    def wants(self, weight: str) -> bool:
        return weight in self._names

    def observe(self, weights: Any, x: Any, experts: Any) -> None:
        for name in weights:
            self.rows.setdefault(name, x.copy())


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_real_models(name: str) -> None:
    graph = halfbyte.open(require_onnx(name)).graph
    weights = [
        node.inputs[1].name
        for node in graph.nodes
        if node.op == "Linear" and node.inputs[1] is not None and node.inputs[1].constant
    ]
    assert len(set(weights)) == NAMES[name]
    if any(value.name == "output_positions" for value in graph.inputs):
        given = token_batches(np.random.default_rng(0).integers(0, 90, (2, 16)))
    else:
        given = input_batches(random_inputs(graph)[:1])
    batches = completed(Batches(given.runs, (None,) * len(given.runs)), graph)
    whole = cut(graph, weights)
    assert not whole.missing and not whole.again
    recorder = Recorder(weights)
    Session(graph, observer=recorder).run(dict(batches.runs[0]))
    with ActivationStore(1 << 30) as store:
        stream = Stream(batches, store)
        for piece in whole.pieces:
            stream.advance(piece)
            for site in piece.sites:
                rows = SiteRows(site, stream).sample(0)
                for weight in site.weights:
                    seen = recorder.rows[weight]
                    error = np.abs(rows - seen).max() / np.abs(seen).max()
                    assert error < 1e-4, weight
            stream.release(piece)
        assert store.held_bytes == 0
