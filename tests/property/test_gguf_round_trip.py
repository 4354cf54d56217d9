"""Any metadata and any tensors come back from a GGUF file as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.converters.gguf.container import read_container
from halfbyte.converters.gguf.ggml_types import VALUE_DTYPES, ValueType
from halfbyte.converters.gguf.metadata_value import MetadataValue
from halfbyte.converters.gguf.writer import write_gguf
from halfbyte.ir.tensor import tensor_from_array

RAW_TEXT = st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=15)


def numbers(kind: ValueType) -> st.SearchStrategy[Any]:
    dtype = np.dtype(VALUE_DTYPES[kind])
    if kind is ValueType.BOOL:
        return st.booleans()
    if dtype.kind == "f":
        return st.floats(width=8 * dtype.itemsize, allow_nan=False)
    limits = np.iinfo(dtype)
    return st.integers(int(limits.min), int(limits.max))


def scalars(kind: ValueType) -> st.SearchStrategy[MetadataValue]:
    return numbers(kind).map(lambda value: MetadataValue(value, kind))


def arrays(kind: ValueType) -> st.SearchStrategy[MetadataValue]:
    return st.lists(numbers(kind), max_size=5).map(
        lambda values: MetadataValue(np.array(values, VALUE_DTYPES[kind]), ValueType.ARRAY, kind)
    )


FLAT = st.one_of(
    *map(scalars, VALUE_DTYPES),
    *map(arrays, VALUE_DTYPES),
    RAW_TEXT.map(lambda text: MetadataValue(text, ValueType.STRING)),
    st.lists(RAW_TEXT, max_size=4).map(
        lambda values: MetadataValue(values, ValueType.ARRAY, ValueType.STRING)
    ),
)
VALUES = FLAT | st.lists(arrays(ValueType.INT32), max_size=3).map(
    lambda values: MetadataValue(values, ValueType.ARRAY, ValueType.ARRAY)
)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
DTYPES = st.sampled_from(["float32", "float16", "float64", "int8", "int32"])


@settings(max_examples=80, deadline=None)
@given(
    pairs=st.dictionaries(NAMES, VALUES, max_size=5),
    entries=st.dictionaries(NAMES, st.tuples(SHAPES, DTYPES), max_size=4),
    alignment=st.sampled_from([None, 1, 8, 64]),
)
def test_metadata_and_tensors_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    pairs: dict[str, MetadataValue],
    entries: dict[str, tuple[tuple[int, ...], str]],
    alignment: int | None,
) -> None:
    pairs.pop("general.alignment", None)
    if alignment is not None:
        pairs["general.alignment"] = MetadataValue(alignment, ValueType.UINT32)
    made = {
        name: np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        for name, (shape, dtype) in entries.items()
    }
    tensors = [tensor_from_array(name, array) for name, array in made.items()]
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, pairs, tensors)
    container = read_container(path)
    assert container.problems == ()
    assert dict(container.metadata) == pairs
    assert list(container.metadata) == list(pairs)
    assert [info.name for info in container.tensors] == list(made)
    for info in container.tensors:
        tensor = container.tensor(info)
        assert tensor.shape == made[info.name].shape
        np.testing.assert_array_equal(tensor.numpy(), made[info.name])
