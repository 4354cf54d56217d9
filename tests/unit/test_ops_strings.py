"""Operators on strings, n-grams, labels and trees."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.ops import infer, op_spec
from halfbyte.ir.ops.strings import text
from support.op_evaluation import evaluated, evaluated_one, node_graph

F32 = np.float32
ML = "ai.onnx.ml"


def test_strings_broadcast_and_join() -> None:
    left = text("a", "b").reshape(2, 1)
    assert evaluated_one("StringConcat", left, text("x", "y")).tolist() == [
        ["ax", "ay"],
        ["bx", "by"],
    ]
    assert evaluated_one("StringConcat", np.zeros((0,), object), text("x")).shape == (0,)
    assert (
        evaluated_one("StringConcat", np.asarray("a", object), np.asarray("b", object)).shape == ()
    )


@pytest.mark.parametrize(
    ("words", "attributes", "parts", "counts"),
    [
        (["a,b", "c"], {"delimiter": ","}, [["a", "b"], ["c", ""]], [2, 1]),
        (["a,,b"], {"delimiter": ","}, [["a", "", "b"]], [3]),
        ([" a  b "], {}, [["a", "b"]], [2]),
        ([" a  b c"], {"delimiter": "", "maxsplit": 1}, [["a", "b c"]], [2]),
        (["", ""], {}, [[], []], [0, 0]),
        ([""], {"delimiter": ","}, [[""]], [1]),
    ],
)
def test_strings_split(words: list, attributes: dict, parts: list, counts: list) -> None:
    found, lengths = evaluated("StringSplit", text(*words), outputs=2, **attributes)
    assert found.tolist() == parts
    assert lengths.tolist() == counts
    assert found.shape == (len(words), max(counts))


@pytest.mark.parametrize(
    ("words", "attributes", "expected"),
    [
        (["Day", "Night"], {"case_change_action": "UPPER"}, ["DAY", "NIGHT"]),
        (["Day", "Night"], {"stopwords": ["day"]}, ["Night"]),
        (["Day", "Night"], {"stopwords": ["day"], "is_case_sensitive": 1}, ["Day", "Night"]),
        (["Day"], {"stopwords": ["DAY"], "case_change_action": "LOWER"}, [""]),
        ([], {}, [""]),
    ],
)
@pytest.mark.parametrize("rank", [1, 2])
def test_words_are_normalized(words: list, attributes: dict, expected: list, rank: int) -> None:
    data = np.asarray(words, object).reshape((1,) * (rank - 1) + (-1,))
    result = evaluated_one("StringNormalizer", data, **attributes)
    assert result.reshape(-1).tolist() == expected
    assert result.ndim == rank


def test_patterns_match_whole_strings() -> None:
    words = text("a.com", "xa.com", "").reshape(3, 1)
    assert evaluated_one("RegexFullMatch", words, pattern=r"a\.\w+").tolist() == [
        [True],
        [False],
        [False],
    ]


def vectorizer(**changes) -> dict:
    return {
        "mode": "TF",
        "min_gram_length": 2,
        "max_gram_length": 2,
        "max_skip_count": 0,
        "ngram_counts": [0, 2],
        "ngram_indexes": [0, 1, 3, 2],
        "pool_strings": ["a", "b", "a", "b", "b", "a"],
    } | changes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0, 0, 1, 2]),
        ({"max_skip_count": 1}, [0, 0, 1, 2]),
        ({"min_gram_length": 1}, [2, 2, 1, 2]),
        ({"mode": "IDF", "weights": [1.0, 1.0, 0.5, 4.0]}, [0, 0, 4, 0.5]),
        ({"mode": "TFIDF", "weights": [1.0, 1.0, 0.5, 4.0]}, [0, 0, 4, 1.0]),
        ({"mode": "TFIDF"}, [0, 0, 1, 2]),
    ],
)
def test_ngrams_are_counted(changes: dict, expected: list) -> None:
    words = text("a", "b", "a", "b")
    assert evaluated_one("TfIdfVectorizer", words, **vectorizer(**changes)).tolist() == expected
    rows = np.stack([words, words[::-1]])
    assert evaluated_one("TfIdfVectorizer", rows, **vectorizer(**changes)).shape == (2, 4)
    empty = evaluated_one("TfIdfVectorizer", words[:0], **vectorizer(**changes))
    assert empty.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("keys", "values", "expected"),
    [
        ({"keys_int64s": [1, 2]}, {"values_strings": ["one", "two"]}, ["one", "two", "_Unused"]),
        ({"keys_int64s": [1, 1]}, {"values_int64s": [7, 8]}, [8, -1, -1]),
        ({"keys_int64s": [2]}, {"values_floats": [0.5], "default_float": 9.0}, [9, 0.5, 9]),
        (
            {"keys_tensor": np.asarray([1, 3], np.int64)},
            {
                "values_tensor": np.asarray([10, 30], np.int16),
                "default_tensor": np.asarray([-3], np.int16),
            },
            [10, -3, 30],
        ),
    ],
)
def test_labels_follow_their_keys(keys: dict, values: dict, expected: list) -> None:
    result = evaluated_one(f"{ML}.LabelEncoder", np.asarray([1, 2, 3]), **keys, **values)
    assert result.tolist() == expected


def test_labels_of_not_a_number_and_of_classes() -> None:
    data = np.asarray([np.nan, 1], F32)
    keyed = {"keys_floats": [np.nan, 1.0], "values_int64s": [5, 6]}
    assert evaluated_one(f"{ML}.LabelEncoder", data, **keyed).tolist() == [5, 6]
    names = {"classes_strings": ["cat", "dog"]}
    key = f"{ML}.LabelEncoder"
    assert evaluated_one(key, text("dog", "cow"), version=1, **names).tolist() == [1, -1]
    found = evaluated_one(key, np.asarray([0, 5]), version=1, **names)
    assert found.tolist() == ["cat", "_Unused"]


def test_features_are_selected_and_compared() -> None:
    row, picks = np.arange(4, dtype=F32), np.asarray([[2, 0]])
    assert evaluated_one(f"{ML}.ArrayFeatureExtractor", row, picks).tolist() == [[2, 0]]
    data = np.arange(6, dtype=F32).reshape(2, 3)
    assert evaluated_one(f"{ML}.ArrayFeatureExtractor", data, picks).tolist() == [[2, 0], [5, 3]]
    assert evaluated_one(f"{ML}.Binarizer", row, threshold=1.0).tolist() == [0, 0, 1, 1]


def tree(**changes) -> dict:
    return {
        "tree_roots": [0, 1],
        "nodes_modes": np.asarray([0, 6], np.uint8),
        "nodes_featureids": [0, 1],
        "nodes_splits": np.asarray([0.5, 0], F32),
        "nodes_truenodeids": [0, 2],
        "nodes_trueleafs": [1, 1],
        "nodes_falsenodeids": [1, 3],
        "nodes_falseleafs": [1, 1],
        "leaf_targetids": [0, 1, 0, 1],
        "leaf_weights": np.asarray([1, 2, 4, 8], F32),
        "membership_values": np.asarray([3, 5, np.nan], F32),
        "n_targets": 3,
    } | changes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [[5, 0, 0], [0, 10, 0], [4, 2, 0]]),
        ({"aggregate_function": 0}, [[2.5, 0, 0], [0, 5, 0], [2, 1, 0]]),
        ({"aggregate_function": 2}, [[1, 0, 0], [0, 2, 0], [4, 2, 0]]),
        ({"aggregate_function": 3}, [[4, 0, 0], [0, 8, 0], [4, 2, 0]]),
        ({"nodes_missing_value_tracks_true": [1, 0]}, [[5, 0, 0], [0, 10, 0], [5, 0, 0]]),
    ],
)
def test_leaves_add_to_targets(changes: dict, expected: list) -> None:
    data = np.asarray([[0.5, 5], [0.6, 4], [np.nan, 3]], F32)
    result = evaluated_one(f"{ML}.TreeEnsemble", data, **tree(**changes))
    assert result.dtype == F32
    assert result.tolist() == expected


@pytest.mark.parametrize("transform", [1, 2, 3, 4])
def test_scores_are_transformed(transform: int) -> None:
    data = np.asarray([[0.5, 5], [0.6, 4]], F32)
    weights = np.asarray([0.1, 0.2, 0.3, 0.4], F32)
    changes = {"leaf_weights": weights, "n_targets": 2, "post_transform": transform}
    result = evaluated_one(f"{ML}.TreeEnsemble", data, **tree(**changes))
    scores = evaluated_one(f"{ML}.TreeEnsemble", data, **tree(**changes | {"post_transform": 0}))
    wanted = {
        1: np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True),
        2: 1 / (1 + np.exp(-scores)),
        3: (scores != 0).astype(F32),
        4: np.where(scores == 0, -np.inf, np.where(scores < 0.5, -0.253347, 0.253347)),
    }[transform]
    np.testing.assert_allclose(result, wanted, rtol=1e-5)


def test_trees_without_an_end_are_refused() -> None:
    endless = tree(nodes_trueleafs=[0, 1], nodes_falseleafs=[0, 1], nodes_falsenodeids=[0, 3])
    with pytest.raises(GraphError, match="never reaches a leaf"):
        evaluated_one(f"{ML}.TreeEnsemble", np.ones((1, 2), F32), **endless)


@pytest.mark.parametrize(
    ("key", "inputs", "attributes", "rule"),
    [
        ("RegexFullMatch", [text("a")], {"pattern": "("}, "give a regular expression"),
        ("StringNormalizer", [text("a", "b").reshape(2, 1)], {}, r"give \[C\] or \[1, C\]"),
        ("TfIdfVectorizer", [text("a")], vectorizer(mode="BM25"), "'TF', 'IDF' or 'TFIDF'"),
        (f"{ML}.LabelEncoder", [text("a")], {"keys_strings": ["a"]}, "in pairs"),
    ],
)
def test_broken_rules(key: str, inputs: list, attributes: dict, rule: str) -> None:
    _, node = node_graph(key, op_spec(key).versions[-1], inputs, attributes)
    with pytest.raises(GraphError, match=rule):
        infer(node)
