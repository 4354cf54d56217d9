"""Importance matrices: the means, lookup by weight, merging."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from halfbyte.converters.gguf.imatrix import (
    ImportanceEntry,
    ImportanceMatrix,
    is_importance,
    merge_importance,
    read_importance,
    write_importance,
)
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError

NAME = "blk.0.ffn_up.weight"


def entry(sums: object, *counts: int) -> ImportanceEntry:
    return ImportanceEntry(np.array(sums, np.float32), np.array(counts, np.int64))


def one(sums: object, *counts: int, **rest: object) -> ImportanceMatrix:
    return ImportanceMatrix({NAME: entry(sums, *counts)}, **rest)  # type: ignore[arg-type]


def test_importance_is_a_float32_division():
    rng = np.random.default_rng(0)
    sums = (rng.random((1, 999), np.float32) * 1e5).astype(np.float32)
    found = one(sums, 3333).importance(NAME)
    assert found is not None and found.dtype == np.float32 and found.shape == (999,)
    wanted = [np.float32(value) / np.float32(3333) for value in sums[0]]
    assert found.tolist() == [float(value) for value in wanted]
    assert one(sums, 3333).importance("blk.1.ffn_up.weight") is None


def test_an_expert_without_tokens_gets_ones():
    found = one([[2, 4], [0, 0], [9, 0]], 2, 0, 3).importance(NAME)
    assert found is not None and found.tolist() == [[1, 2], [1, 1], [3, 0]]


def test_older_form_divides_by_calls_and_leaves_values_without_calls():
    assert one([[2, 4]], 2, per_call=True).importance(NAME).tolist() == [1, 2]  # type: ignore[union-attr]
    assert one([[2, 4]], 0, per_call=True).importance(NAME).tolist() == [2, 4]  # type: ignore[union-attr]


def test_lookup_by_shape():
    stacked = one(np.arange(12).reshape(3, 4), 1, 1, 1)
    assert stacked.for_weight(NAME, (3, 7, 4)).shape == (3, 4)  # type: ignore[union-attr]
    # A dense stacked weight has one count for all of its matrices.
    flat = one(np.arange(12).reshape(1, 12), 1)
    assert flat.for_weight(NAME, (3, 7, 4)).tolist()[2] == [8, 9, 10, 11]  # type: ignore[union-attr]
    assert flat.for_weight(NAME, (7, 12)).shape == (12,)  # type: ignore[union-attr]
    assert flat.for_weight("other", (7, 12)) is None
    for shape in ((7, 4), (2, 7, 4), (7, 24)):
        with pytest.raises(FormatError, match="12 values, .* are required by its shape"):
            flat.for_weight(NAME, shape)


def test_merge_adds_sums_and_counts():
    first = one([[1, 2]], 8, datasets=("a",), chunk_count=2, chunk_size=4)
    second = one([[10, 20]], 4, datasets=("b", "c"), chunk_count=1, chunk_size=4)
    other = ImportanceMatrix({"x": entry([[5]], 4)}, ("d",), 1, 4)
    merged = merge_importance([first, second, other])
    assert merged.entries[NAME].sums.tolist() == [[11, 22]]
    assert merged.entries[NAME].counts.tolist() == [12]
    assert merged.entries["x"].sums.tolist() == [[5]]
    assert merged.datasets == ("a", "b", "c", "d")
    assert (merged.chunk_count, merged.chunk_size) == (3, 4)


def test_merge_of_the_older_form_counts_tokens():
    older = one([[3, 6]], 3, chunk_size=0, per_call=True)
    merged = merge_importance([older, one([[8, 8]], 8, chunk_size=4)])
    assert merged.entries[NAME].sums.tolist() == [[20, 32]]
    assert merged.entries[NAME].counts.tolist() == [20]
    assert merged.chunk_size == 4
    assert merge_importance([older]).entries[NAME].counts.tolist() == [3 * 512]


def test_merge_of_one_count_with_several():
    merged = merge_importance([one([[1, 2, 3, 4]], 8), one([[1, 1], [1, 1]], 2, 0)])
    assert merged.entries[NAME].sums.tolist() == [[2, 3], [4, 5]]
    assert merged.entries[NAME].counts.tolist() == [10, 8]


def test_merge_refuses_sums_beyond_float32(recwarn: pytest.WarningsRecorder):
    large = ImportanceMatrix(
        {"w": ImportanceEntry(np.full((1, 4), 3e38, np.float32), np.ones(1, np.int64))}, path="b"
    )
    with pytest.raises(FormatError, match="b: weight 'w': sums leave float32's range"):
        merge_importance([large, large])
    assert not recwarn.list


@pytest.mark.parametrize("second", [one([[1, 2, 3]], 1), one([[1], [2]], 1, 1)])
def test_merge_refuses_other_sizes(second: ImportanceMatrix):
    first = one([[1], [2], [3], [4]], 1, 1, 1, 1)
    with pytest.raises(FormatError, match="merge files of one model"):
        merge_importance([first, second])


def test_names_are_limited_by_gguf(tmp_path: Path):
    for length in (55, 56):
        matrix = ImportanceMatrix({"n" * length: entry([[1]], 1)})
        if length == 55:
            write_importance(matrix, tmp_path / "fits")
            assert read_importance(tmp_path / "fits").names == ["n" * 55]
        else:
            with pytest.raises(UnsupportedError, match="this name in GGUF"):
                write_importance(matrix, tmp_path / "long")
            assert not (tmp_path / "long").exists()


def test_unknown_form(tmp_path: Path):
    with pytest.raises(ValueError, match="gguf or dat"):
        write_importance(one([[1]], 1), tmp_path / "x", "npz")


def test_older_form_leaves_out_weights_without_tokens(tmp_path: Path):
    matrix = ImportanceMatrix({"a": entry([[0]], 0), "b": entry([[3]], 3)}, (), 1, 2)
    write_importance(matrix, tmp_path / "x.dat", "dat")
    assert read_importance(tmp_path / "x.dat").names == ["b"]


def test_is_importance(tmp_path: Path):
    write_importance(one([[1]], 1), tmp_path / "x")
    assert is_importance(tmp_path / "x")
    write_importance(one([[1]], 1), tmp_path / "x", "dat")
    assert not is_importance(tmp_path / "x")
    (tmp_path / "y").write_bytes(b"GGUF and no more")
    assert not is_importance(tmp_path / "y")
    assert not is_importance(tmp_path / "missing")


def test_output_folder_must_exist(tmp_path: Path):
    with pytest.raises(HalfbyteError, match="does not exist"):
        write_importance(one([[1]], 1), tmp_path / "no" / "x.gguf")
