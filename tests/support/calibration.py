"""Runs of tiny models for tests of calibration."""

from __future__ import annotations

from typing import Any

import numpy as np

from halfbyte.ir.model import Model
from halfbyte.quant.calibration.batches import Batches, input_batches, token_batches
from halfbyte.quant.calibration.gather import constant_names, linear_weights
from halfbyte.runtime.session import Session


def linears(model: Model) -> list[str]:
    """Return the names of the graph's constants that linear layers multiply by."""
    names = constant_names(model)
    read = {
        node.inputs[1].name
        for node in model.graph.nodes
        if node.op in ("Linear", "ExpertLinear") and node.inputs[1] is not None
    }
    return [names[n] for n in linear_weights(model.weights) if names.get(n) in read]


def random_batches(model: Model, count: int = 5, length: int = 12, seed: int = 1) -> Batches:
    """Return sequences of random tokens, two to a run; an encoder's have padding."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, model.config["vocab_size"], (count, length))
    if all(value.name != "attention_mask" for value in model.graph.inputs):
        return token_batches(ids, run_tokens=2 * length)
    lengths = generator.integers(length // 2, length + 1, (count, 1))
    mask = (np.arange(length) < lengths).astype(np.int64)
    return input_batches(
        [
            {"input_ids": ids[start : start + 2], "attention_mask": mask[start : start + 2]}
            for start in range(0, count, 2)
        ]
    )


class Recorder:
    """An observer that keeps all rows, and the experts that they met, by weight."""

    def __init__(self, model: Model) -> None:
        self._names = set(linears(model))
        self.rows: dict[str, list[Any]] = {}
        self.experts: dict[str, list[Any]] = {}

    def wants(self, weight: str) -> bool:
        """Whether it is a linear layer's."""
        return weight in self._names

    def observe(self, weights: Any, x: Any, experts: Any) -> None:
        """Keep copies."""
        for name in weights:
            self.rows.setdefault(name, []).append(x.copy())
            if experts is not None:
                self.experts.setdefault(name, []).append(experts.copy())


def observed(model: Model, batches: Batches, threads: int = 1) -> Recorder:
    """Return what the linear layers of the whole model meet."""
    recorder = Recorder(model)
    session = Session(model, threads=threads, observer=recorder)
    for run in batches.runs:
        session.reset()
        session.run(dict(run))
    return recorder
