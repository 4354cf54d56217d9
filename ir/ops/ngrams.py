"""TfIdfVectorizer: how often the n-grams of a pool stand in sequences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    required_input,
)


def pool(attributes: Mapping[str, Any]) -> dict[tuple[Any, ...], int]:
    """Return each n-gram of the lengths asked for with its number in the pool."""
    items = attributes["pool_strings"] or attributes["pool_int64s"] or []
    starts = [*attributes["ngram_counts"], len(items)]
    found: dict[tuple[Any, ...], int] = {}
    number = 0
    for length, (start, stop) in enumerate(pairwise(starts), 1):
        for at in range(start, stop, length):
            if attributes["min_gram_length"] <= length <= attributes["max_gram_length"]:
                found[tuple(items[at : at + length])] = number
            number += 1
    return found


def grams(row: Sequence[Any], attributes: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the n-grams of a sequence for every number of skipped items; single items once."""
    for length in range(attributes["min_gram_length"], attributes["max_gram_length"] + 1):
        for step in range(1, attributes["max_skip_count"] + 2 if length > 1 else 2):
            reach = step * (length - 1)
            for start in range(len(row) - reach):
                yield tuple(row[start : start + reach + 1 : step])


def evaluate_vectorizer(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Count n-grams in a sequence or in each row; `IDF` and `TFIDF` weigh them."""
    data = np.asarray(inputs[0])
    rows = data.reshape(-1, data.shape[-1]).tolist() if data.size else [[]] * int(data.ndim == 1)
    known, places = pool(attributes), attributes["ngram_indexes"]
    counts = np.zeros((len(rows) if data.size else _rows(data), max(places) + 1), np.float32)
    for line, row in enumerate(rows):
        numbers = [known[gram] for gram in grams(row, attributes) if gram in known]
        np.add.at(counts[line], [places[n] for n in numbers], 1)
    if attributes["mode"] == "IDF":
        counts = np.minimum(counts, 1)
    if attributes["mode"] != "TF" and attributes["weights"]:
        factors = np.ones(counts.shape[1], np.float32)
        factors[places] = attributes["weights"]
        counts *= factors
    return [counts[0] if data.ndim == 1 else counts]


def _rows(data: Array) -> int:
    return 1 if data.ndim == 1 else data.shape[0]


def infer_vectorizer(node: Node) -> list[ValueType]:
    """Infer: a count for each place, per row."""
    shape = required_input(node, 0).shape
    mode = node.attributes.get("mode")
    if mode not in ("TF", "IDF", "TFIDF"):
        raise GraphError(node.label, f"mode {mode!r}; give 'TF', 'IDF' or 'TFIDF'")
    places = max(node.attributes["ngram_indexes"]) + 1
    return [ValueType("float32", None if shape is None else (*shape[:-1], places))]


def vectorizer_cases() -> list[Case]:
    """Return a vector and rows, counted and weighted."""
    rows = np.asarray([[1, 1, 3, 3, 3, 7], [8, 6, 7, 5, 6, 8]], np.int32)
    grams_of = {
        "min_gram_length": 1,
        "max_gram_length": 2,
        "max_skip_count": 1,
        "ngram_counts": [0, 4],
        "ngram_indexes": [0, 1, 2, 3, 4, 5, 6],
        "pool_int64s": [2, 3, 5, 4, 5, 6, 7, 8, 6, 7],
    }
    weights = [0.5, 1.0, 2.0, 1.0, 1.5, 1.0, 3.0]
    return [
        Case("vector", [rows[0]], {**grams_of, "mode": "TF"}),
        Case("rows", [rows], {**grams_of, "mode": "TFIDF", "weights": weights}),
    ]


NEEDED = ("min_gram_length", "max_gram_length", "max_skip_count")
SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "TfIdfVectorizer",
        (9,),
        ("X",),
        ("Y",),
        infer=infer_vectorizer,
        evaluate=evaluate_vectorizer,
        attributes={
            **{name: Attribute("int", required=True) for name in NEEDED},
            "mode": Attribute("string", required=True),
            "ngram_counts": Attribute("ints", required=True),
            "ngram_indexes": Attribute("ints", required=True),
            "pool_int64s": Attribute("ints"),
            "pool_strings": Attribute("strings"),
            "weights": Attribute("floats"),
        },
        cases=vectorizer_cases,
    ),
)
