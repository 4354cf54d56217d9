"""Rotation: the residual stream in a basis without outliers (QuaRot, arXiv 2404.00456).

Scales of the RMS normalizations go into the linear layers behind them. Then the stream x becomes
R x, R a Hadamard matrix with random signs: tables and writers are multiplied by R, readers by its
transpose, and the model's function stays as it is. Where an attention's values come straight from a
linear layer and go straight into one, each head's channels are rotated too. Rotations that would
have to run with the model (before the down projection, on queries and keys) are not made.

An output head that shares the embedding's table gets a table of its own: the scale of the last
normalization is in it. Rotated weights are float32.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.transforms import Rewritten, TransformOptions
from halfbyte.quant.transforms.groups import LINEAR
from halfbyte.quant.transforms.hadamard import Turn
from halfbyte.quant.transforms.residual import Stream, find_stream, refuse
from halfbyte.quant.transforms.scaled import FLOAT32, computed

SEED_KEY = "halfbyte.rotation_seed"
HEAD_NAMES = {"gguf": "output.weight"}
COLUMNS_AT_ONCE = 1024


class Rotation:
    """The transform `rotate`."""

    scope: Literal["model"] = "model"

    def rewrite(self, model: Model, options: TransformOptions) -> Rewritten:
        """Return the model with its residual stream, and the heads' values, rotated.

        Raises:
            UnsupportedError: see `residual.py`; or a tied head in a model of no known architecture.
        """
        stream = find_stream(model.graph)
        notes = []
        if stream.tied:
            model, note = _untied(model, stream)
            stream, notes = find_stream(model.graph), [note]
        turns = _turns(model.graph, stream, options)
        # Constants of the graph bear the tensors' names, the model's weights may have others.
        keys = {tensor.name: key for key, tensor in model.weights.items()}
        weights = dict(model.weights)
        for name, tensor in _rotated(model.graph, stream, turns).items():
            if name not in keys:
                raise refuse(f"constant {name!r} is no weight of the model")
            weights[keys[name]] = tensor
        notes.append(
            f"residual stream of {stream.width} rotated by Hadamard blocks of "
            f"{turns.stream.block}, values of {len(turns.values)} attentions; seed {options.seed}"
        )
        metadata = {**model.metadata, SEED_KEY: options.seed}
        return Rewritten(replace(model, metadata=metadata).with_weights(weights), tuple(notes))


def _untied(model: Model, stream: Stream) -> tuple[Model, str]:
    """Return the model whose head has a table of its own, and what to tell of it."""
    tables = [model.graph.constants[name] for name in stream.tied]
    known = model.build is not None and model.config.get("tie_word_embeddings") is not None
    if len(tables) != 1 or tables[0].role is not Role.TOKEN_EMBEDDING or not known:
        raise refuse("the head shares the embedding's table and cannot be given its own")
    table = tables[0]
    name = HEAD_NAMES.get(model.provenance.format, "lm_head.weight")
    head = table.renamed(name).identified(WeightKey(Role.OUTPUT_HEAD))
    made = replace(model, config={**model.config, "tie_word_embeddings": False})
    made = made.with_weights({**model.weights, name: head})
    return made, f"the output head {name!r} no longer shares the table of {table.name!r}"


@dataclass
class _Turns:
    """The rotations: of the stream, and by name of a weight those of its heads' channels."""

    stream: Turn
    values: dict[str, Turn] = field(default_factory=dict)
    columns: dict[str, Turn] = field(default_factory=dict)


def _turns(graph: Graph, stream: Stream, options: TransformOptions) -> _Turns:
    generator = np.random.default_rng(options.seed)
    found = _Turns(Turn.random(stream.width, generator))
    for node in graph.nodes if options.heads else ():
        ends = _value_ends(graph, node) if node.op == "CachedAttention" else None
        if ends is not None:
            weight, bias, output = ends
            rows = graph.constants[weight].rows
            turn = Turn.random(rows // int(node.attributes["num_kv_heads"]), generator)
            found.values[weight] = turn
            found.columns |= {name: turn for name in (bias, output) if name}
    return found


def _value_ends(graph: Graph, node: Node) -> tuple[str, str, str] | None:
    """Return weight and bias of an attention's values and the weight that reads its output.

    None where they are not linear layers of their own.
    """
    values, mixed = node.inputs[2], node.outputs[0]
    maker = None if values is None else values.producer
    if values is None or maker is None or maker.op != LINEAR or len(values.uses) != 1:
        return None
    if len(mixed.uses) != 1 or mixed in graph.outputs:
        return None
    reader, index = mixed.uses[0]
    if reader.op != LINEAR or index:
        return None
    own = [maker.inputs[1], maker.inputs[2] if len(maker.inputs) > 2 else None, reader.inputs[1]]
    constant = all(v is None or (v.constant is not None and len(v.uses) == 1) for v in own)
    weight, bias, output = ("" if value is None else value.name for value in own)
    return (weight, bias, output) if constant and weight and output else None


@dataclass(frozen=True)
class _Parts:
    """What happens to one weight: R_rows (W scale) R_columns^T, block after block."""

    scale: NDArray[np.float32] | None = None
    columns: Turn | None = None
    rows: Turn | None = None

    def of(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a matrix changed, or some of its rows where rows are not turned."""
        made: NDArray[np.float64] = values.astype(np.float64)
        if self.scale is not None:
            made = made * self.scale
        if self.columns is not None:
            made = _turned(self.columns, made)
        if self.rows is not None:
            for start in range(0, made.shape[1], COLUMNS_AT_ONCE):
                part = np.ascontiguousarray(made[:, start : start + COLUMNS_AT_ONCE].T)
                made[:, start : start + COLUMNS_AT_ONCE] = _turned(self.rows, part).T
        return made.astype(np.float32)


def _turned(turn: Turn, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn each piece of the last axis, as long as the rotation."""
    return turn.rows(values.reshape(-1, len(turn.signs))).reshape(values.shape)


def _rotated(graph: Graph, stream: Stream, turns: _Turns) -> dict[str, Tensor]:
    """Return every weight that changes, by name of its constant."""
    constants = graph.constants
    parts = {name: _Parts(columns=turns.stream) for name in (*stream.tables, *stream.biases)}
    found: dict[str, Tensor] = {}
    for norm, readers in stream.norms.items():
        scale = constants[norm].float32().reshape(-1)
        found[norm] = _ones(constants[norm])
        parts |= {reader: _Parts(scale=scale, columns=turns.stream) for reader in readers}
    writers = dict.fromkeys(stream.writers, turns.stream) | turns.values
    for name, turn in turns.columns.items():
        parts[name] = replace(parts.get(name, _Parts()), columns=turn)
    for name, turn in writers.items():
        parts[name] = replace(parts.get(name, _Parts()), rows=turn)
    held = _Held()
    return found | {name: _applied(constants[name], part, held) for name, part in parts.items()}


def _ones(tensor: Tensor) -> Tensor:
    array = np.ones((1, tensor.size), np.float32)
    target = tensor.encoding if not tensor.encoding.is_quantized else FLOAT32
    return computed(tensor, lambda start, stop: array[start:stop], target)


class _Held:
    """The last matrix made: readers take a matrix range after range."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[str, int] | None = None
        self._matrix: NDArray[np.float32] | None = None

    def matrix(self, tensor: Tensor, number: int, parts: _Parts) -> NDArray[np.float32]:
        """Return matrix `number` of a weight, changed."""
        with self._lock:
            if self._key != (tensor.name, number) or self._matrix is None:
                size = tensor.shape[-2]
                self._matrix = parts.of(tensor.float32(number * size, (number + 1) * size))
                self._key = tensor.name, number
            return self._matrix


def _applied(tensor: Tensor, parts: _Parts, held: _Held) -> Tensor:
    if parts.rows is None:
        return computed(tensor, lambda start, stop: parts.of(tensor.float32(start, stop)))
    size = tensor.shape[-2]

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        pieces = []
        while start < stop:
            number, offset = divmod(start, size)
            count = min(stop - start, size - offset)
            pieces.append(held.matrix(tensor, number, parts)[offset : offset + count])
            start += count
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    return computed(tensor, rows)
