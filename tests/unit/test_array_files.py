"""Files of inputs and outputs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from halfbyte.array_files import read_inputs, write_arrays
from halfbyte.errors import FormatError, HalfbyteError
from halfbyte.ir.graph import Graph, Value
from halfbyte.runtime.session import Session, checked_input
from halfbyte.verification.metrics.output_error import summarize
from halfbyte.verification.outputs import compare, random_inputs

DTYPES = ("bfloat16", "float8_e4m3fn", "int4", "uint4", "float16", "int64", "bool", "complex64")


def passing(dtype: str) -> Graph:
    """Return a graph that gives its input back."""
    graph = Graph()
    graph.inputs.append(Value("x", dtype))
    graph.outputs.append(graph.inputs[0])
    return graph


def there_and_back(tmp_path, dtype, value):
    graph = passing(dtype)
    result = Session(graph).run({"x": value})
    write_arrays(tmp_path / "y.npz", result)
    found = Session(graph).run(read_inputs(tmp_path / "y.npz", graph))
    return result["x"], found["x"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_comes_back(tmp_path, dtype):
    wanted = np.array([0, 1, 3]).astype(getattr(ml_dtypes, dtype, dtype))
    given, found = there_and_back(tmp_path, dtype, wanted)
    assert found.dtype == wanted.dtype == given.dtype
    np.testing.assert_array_equal(found, wanted)
    with np.load(tmp_path / "y.npz") as archive:
        assert archive["x"].dtype.kind != "V"


def test_strings_come_back(tmp_path):
    _, found = there_and_back(tmp_path, "string", np.array([["ü", ""], ["b", "long text"]], object))
    assert found.tolist() == [["ü", ""], ["b", "long text"]]
    assert checked_input(Value("x", "string"), np.array([b"a"])).tolist() == ["a"]


def test_sequences_come_back(tmp_path):
    pair = [np.ones((2, 3), np.float32), np.zeros(4, np.float32)]
    _, found = there_and_back(tmp_path, "sequence.float32", pair)
    assert [array.shape for array in found] == [(2, 3), (4,)]
    write_arrays(tmp_path / "y.npz", {"a": None, "b": [], "c": np.int64(3)})
    with np.load(tmp_path / "y.npz") as archive:
        assert archive.files == ["c"]


def test_files_of_numpy_without_names_of_types(tmp_path):
    values = np.array([1.5, -2], ml_dtypes.bfloat16)
    np.savez(tmp_path / "x.npz", x=values)
    found = read_inputs(tmp_path / "x.npz", passing("bfloat16"))
    np.testing.assert_array_equal(checked_input(Value("x", "bfloat16"), found["x"]), values)


@pytest.mark.parametrize(
    ("dtype", "given"),
    [("int4", [8]), ("int32", [1 << 40]), ("uint8", [-1]), ("uint64", [-1]), ("int64", [2.0]),
     ("float16", [1e30]), ("float8_e4m3fn", [1e30]), ("bool", [1]), ("float32", [1])],
)  # fmt: skip
def test_values_that_would_be_lost(dtype, given):
    with pytest.raises(HalfbyteError, match="input 'x'"):
        checked_input(Value("x", dtype), np.array(given))


def test_values_that_are_kept():
    assert checked_input(Value("x", "uint8"), np.array([255])).dtype == np.uint8
    wide = checked_input(Value("x", "float32"), np.array([np.inf, np.nan, 0.1]))
    assert np.isinf(wide[0]) and np.isnan(wide[1])


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x04."])
def test_no_archive(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(FormatError, match=r"make one with numpy.savez") as caught:
        read_inputs(tmp_path / "x.npz", Graph())
    assert "pickle" not in str(caught.value)


def test_outputs_of_every_kind_are_compared():
    class Fixed:
        def __init__(self, results):
            self.results = results

        def run(self, inputs):
            return self.results

    first = {"s": np.array(["a", "b"], object), "q": [np.ones(2), np.zeros(1)], "o": None}
    second = {"s": np.array(["a", "c"], object), "q": [np.ones(2), np.zeros(1)], "o": None}
    same, other = (compare(Fixed(first), Fixed(found), [{}]) for found in (first, second))
    assert [entry["name"] for entry in same] == ["s", "q.0", "q.1"]
    assert [entry["max_abs_error"] for entry in same] == [0, 0, 0]
    assert [entry["max_abs_error"] for entry in other] == [1, 0, 0]


def test_inputs_that_cannot_be_made():
    assert random_inputs(passing("bfloat16"))[0]["x"].dtype == ml_dtypes.bfloat16
    with pytest.raises(HalfbyteError, match="give --data"):
        random_inputs(passing("string"))


def test_the_same_infinity_is_no_error():
    values = np.array([1, -np.inf, np.nan])
    assert summarize(values, values) == {
        "cosine": pytest.approx(1), "max_abs_error": 0, "max_rel_error": 0
    }  # fmt: skip
    assert np.isinf(summarize(values, np.array([1, 0, np.nan]))["max_abs_error"])
    assert np.isnan(summarize(values, np.array([np.nan, -np.inf, 0]))["max_abs_error"])
