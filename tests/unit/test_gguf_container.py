"""Parsing GGUF files: values, types, byte order, layout."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from halfbyte.converters.gguf.byte_order import WIDE_FIELDS, block_permutation
from halfbyte.converters.gguf.container import is_gguf, read_container
from halfbyte.converters.gguf.ggml_types import (
    BY_NAME,
    FILE_TYPES,
    GGML_TYPES,
    VALUE_DTYPES,
    ValueType,
    encoding_of,
    ggml_type_of,
)
from halfbyte.converters.gguf.metadata_value import MetadataValue, pack_value, plain, typed
from halfbyte.converters.gguf.opaque import OpaqueBlocks
from halfbyte.errors import QuantizationError, UnsupportedError
from support.gguf_models import gguf_bytes


def parsed(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "file.gguf"
    path.write_bytes(content)
    return read_container(path)


VALUES = [
    (MetadataValue(200, ValueType.UINT8), 200),
    (MetadataValue(-100, ValueType.INT8), -100),
    (MetadataValue(60000, ValueType.UINT16), 60000),
    (MetadataValue(-30000, ValueType.INT16), -30000),
    (MetadataValue(4_000_000_000, ValueType.UINT32), 4_000_000_000),
    (MetadataValue(-2_000_000_000, ValueType.INT32), -2_000_000_000),
    (MetadataValue(0.5, ValueType.FLOAT32), 0.5),
    (MetadataValue(True, ValueType.BOOL), True),
    (MetadataValue("héllo", ValueType.STRING), "héllo"),
    (MetadataValue(2**63, ValueType.UINT64), 2**63),
    (MetadataValue(-(2**62), ValueType.INT64), -(2**62)),
    (MetadataValue(0.1, ValueType.FLOAT64), 0.1),
    (MetadataValue(["a", "", "ü"], ValueType.ARRAY, ValueType.STRING), ["a", "", "ü"]),
]


@pytest.mark.parametrize(("entry", "value"), VALUES, ids=lambda v: str(getattr(v, "type", "")))
def test_values_keep_their_type(tmp_path: Path, entry: MetadataValue, value: Any) -> None:
    found = parsed(tmp_path, gguf_bytes({"key": entry})).metadata["key"]
    assert found == entry
    assert found.value == value
    assert type(found.value) is type(value)


@pytest.mark.parametrize("kind", list(VALUE_DTYPES))
def test_arrays_keep_their_element_type(tmp_path: Path, kind: ValueType) -> None:
    values = np.array([0, 1, 1, 0], VALUE_DTYPES[kind])
    entry = MetadataValue(values, ValueType.ARRAY, kind)
    found = parsed(tmp_path, gguf_bytes({"key": entry})).metadata["key"]
    assert found == entry
    assert found.value.dtype == values.dtype


def test_nested_and_empty_arrays(tmp_path: Path) -> None:
    inner = [typed([1, 2]), typed(["a"])]
    nested = MetadataValue(inner, ValueType.ARRAY, ValueType.ARRAY)
    empty = MetadataValue([], ValueType.ARRAY, ValueType.STRING)
    found = parsed(tmp_path, gguf_bytes({"nested": nested, "empty": empty})).metadata
    assert found["nested"] == nested
    assert plain(found)["empty"] == []


def test_text_that_is_not_utf8_keeps_its_bytes(tmp_path: Path) -> None:
    raw = b"ab\xff\xc3"
    text = raw.decode("utf-8", "surrogateescape")
    found = parsed(tmp_path, gguf_bytes({"one": text, "many": [text, "x"]})).metadata
    assert found["one"].value == text
    assert pack_value(found["one"]) == struct.pack("<Q", 4) + raw
    assert found["many"].value[0].encode("utf-8", "surrogateescape") == raw


def test_bool_bytes_other_than_one_are_true(tmp_path: Path) -> None:
    content = gguf_bytes({"flag": True})
    assert parsed(tmp_path, content[:-1] + b"\x07").metadata["flag"].value is True


def test_version_two_reads_the_same(tmp_path: Path) -> None:
    content = gguf_bytes({"n": 5})
    assert parsed(tmp_path, content[:4] + struct.pack("<I", 2) + content[8:]).version == 2


def test_large_vocabulary_is_fast(tmp_path: Path) -> None:
    tokens = [f"token {index}" for index in range(150_000)]
    path = tmp_path / "file.gguf"
    path.write_bytes(gguf_bytes({"tokenizer.ggml.tokens": tokens}))
    started = time.perf_counter()
    container = read_container(path)
    assert time.perf_counter() - started < 1.0
    assert container.metadata["tokenizer.ggml.tokens"].value == tokens


def test_shapes_are_reversed_and_scalars_allowed(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.float32)
    entries = [
        ("cube", (4, 3, 2), 0, data.tobytes()),
        ("scalar", (), 0, data[:1].tobytes()),
        ("empty", (0, 5), 0, b""),
    ]
    container = parsed(tmp_path, gguf_bytes({}, entries))
    cube, scalar, empty = map(container.tensor, container.tensors)
    np.testing.assert_array_equal(cube.numpy(), data.reshape(2, 3, 4))
    assert scalar.shape == ()
    assert scalar.numpy() == 0
    assert empty.shape == (5, 0)
    assert empty.numpy().size == 0
    assert container.problems == ()


def test_alignment_of_the_file_is_used(tmp_path: Path) -> None:
    data = np.arange(3, dtype=np.float32)
    entries = [("a", (3,), 0, data.tobytes()), ("b", (3,), 0, (data + 1).tobytes())]
    pairs = {"general.alignment": 256}
    container = parsed(tmp_path, gguf_bytes(pairs, entries, alignment=256))
    assert container.alignment == 256
    assert [info.offset % 256 for info in container.tensors] == [0, 0]
    np.testing.assert_array_equal(container.tensor(container.tensors[1]).numpy(), data + 1)


def test_gaps_are_tolerated_and_told(tmp_path: Path) -> None:
    entries = [("a", (8,), 0, bytes(32)), ("b", (8,), 0, bytes(32))]
    content = gguf_bytes({}, entries) + bytes(64)
    at = content.rindex(struct.pack("<Q", 32))
    moved = content[:at] + struct.pack("<Q", 96) + content[at + 8 :]
    assert parsed(tmp_path, moved).problems == (
        "tensor 'b' is not where the one before it ends: llama.cpp refuses this",
    )


def test_names_of_64_bytes_are_told(tmp_path: Path) -> None:
    container = parsed(tmp_path, gguf_bytes({}, [("n" * 64, (1,), 0, bytes(4))]))
    assert "64 bytes" in container.problems[0]


def test_is_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert not is_gguf(path)
    path.write_bytes(b"GGUFrest")
    assert is_gguf(path)
    path.write_bytes(b"no")
    assert not is_gguf(path)


def big_endian_file(kind: int, dims: tuple[int, ...], data: bytes) -> bytes:
    key = b"n"
    head = b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + struct.pack(">Q", 1) + key
    head += struct.pack(">II", 4, 77)
    head += struct.pack(">Q", 1) + b"w" + struct.pack(f">I{len(dims)}Q", len(dims), *dims)
    head += struct.pack(">IQ", kind, 0)
    return head + bytes(-len(head) % 32) + data


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "int64", "int8"])
def test_big_endian_plain_types(tmp_path: Path, name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    values = np.arange(12).astype(dtype).reshape(3, 4)
    kind = next(k for k in GGML_TYPES.values() if k.dtype_name == name)
    swapped = values.view(np.uint8).reshape(-1, dtype.itemsize)[:, ::-1].tobytes()
    container = parsed(tmp_path, big_endian_file(kind.id, (4, 3), swapped))
    assert container.big_endian
    assert plain(container.metadata) == {"n": 77}
    tensor = container.tensor(container.tensors[0])
    np.testing.assert_array_equal(tensor.numpy(), values)
    np.testing.assert_array_equal(tensor.decode(1, 2), values[1:2])


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_big_endian_blocks(tmp_path: Path, name: str) -> None:
    kind = BY_NAME[name]
    encoding = encoding_of(kind)
    rows = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    little = encoding.encode(rows)["data"]
    stored = little.reshape(-1, kind.block_bytes).copy()
    for offset, width in WIDE_FIELDS[name]:
        stored[:, offset : offset + width] = stored[:, offset : offset + width][:, ::-1]
    container = parsed(tmp_path, big_endian_file(kind.id, (64, 3), stored.tobytes()))
    tensor = container.tensor(container.tensors[0])
    np.testing.assert_array_equal(tensor.parts["data"].read(), little)
    np.testing.assert_array_equal(tensor.parts["data"].read(1, 3), little[1:])


def test_big_endian_type_of_unknown_fields(tmp_path: Path) -> None:
    container = parsed(tmp_path, big_endian_file(16, (256,), bytes(66)))
    with pytest.raises(UnsupportedError, match="IQ2_XXS in a big-endian file"):
        container.tensor(container.tensors[0])


def test_big_endian_without_values(tmp_path: Path) -> None:
    container = parsed(tmp_path, big_endian_file(0, (0, 3), b""))
    assert container.tensor(container.tensors[0]).numpy().shape == (3, 0)


@pytest.mark.parametrize("name", list(WIDE_FIELDS))
def test_block_permutation_is_its_own_inverse(name: str) -> None:
    order = block_permutation(BY_NAME[name])
    np.testing.assert_array_equal(order[order], np.arange(BY_NAME[name].block_bytes))


def test_types_without_an_encoding_are_opaque(tmp_path: Path) -> None:
    kind = BY_NAME["Q8_1"]
    container = parsed(tmp_path, gguf_bytes({}, [("w", (32, 2), 9, bytes(range(72)))]))
    tensor = container.tensor(container.tensors[0])
    encoding = tensor.encoding
    assert encoding == OpaqueBlocks("Q8_1", 32, 36)
    assert encoding.block_shape == (1, 32)
    assert encoding.bits_per_weight == 8 * 36 / 32
    assert ggml_type_of(encoding) == kind
    assert tensor.nbytes == 72
    np.testing.assert_array_equal(
        tensor.take_rows(np.array([1, 0])).read()["data"][0], np.arange(36, 72, dtype=np.uint8)
    )
    values = np.zeros((1, 32), np.float32)
    for attempt in (
        lambda: tensor.decode(),
        lambda: encoding.unpack({}, 32),
        lambda: encoding.pack(None),  # type: ignore[arg-type]
        lambda: encoding.fit(values),
        lambda: encoding.assign(values, None),  # type: ignore[arg-type]
        lambda: encoding.encode(values),
    ):
        with pytest.raises(UnsupportedError, match="computing with Q8_1 weights"):
            attempt()
    with pytest.raises(QuantizationError, match="multiple of 32"):
        encoding.part_specs(1, 100)


def test_table_of_types() -> None:
    assert len(GGML_TYPES) == len(BY_NAME) == 35
    assert set(FILE_TYPES) <= set(BY_NAME)
    for kind in GGML_TYPES.values():
        assert ggml_type_of(encoding_of(kind)) == kind


@pytest.mark.parametrize(
    ("value", "kind", "element"),
    [
        (True, ValueType.BOOL, None),
        (np.bool_(False), ValueType.BOOL, None),
        (7, ValueType.UINT32, None),
        (-7, ValueType.INT32, None),
        (2**40, ValueType.UINT64, None),
        (-(2**40), ValueType.INT64, None),
        (1.5, ValueType.FLOAT32, None),
        (1e300, ValueType.FLOAT64, None),
        (float("inf"), ValueType.FLOAT32, None),
        ("x", ValueType.STRING, None),
        (np.uint16(3), ValueType.UINT16, None),
        (np.float64(0.1), ValueType.FLOAT64, None),
        ([1, 2], ValueType.ARRAY, ValueType.INT32),
        ([1, 2**40], ValueType.ARRAY, ValueType.INT64),
        ([0.5, 1], ValueType.ARRAY, ValueType.FLOAT32),
        ([True, False], ValueType.ARRAY, ValueType.BOOL),
        (("a", "b"), ValueType.ARRAY, ValueType.STRING),
        (b"\x01\x02", ValueType.ARRAY, ValueType.UINT8),
        (np.array([1, 2], np.int32), ValueType.ARRAY, ValueType.INT32),
        (np.array([1.0], np.float32), ValueType.ARRAY, ValueType.FLOAT32),
    ],
)
def test_types_given_to_plain_values(
    value: Any, kind: ValueType, element: ValueType | None
) -> None:
    entry = typed(value)
    assert (entry.type, entry.element_type) == (kind, element)
    assert typed(entry) is entry


@pytest.mark.parametrize("value", [None, {"a": 1}, [1, "a"], np.zeros((2, 2)), np.complex64(1)])
def test_values_without_a_type(value: Any) -> None:
    with pytest.raises(TypeError, match="GGUF has no metadata type"):
        typed(value)


def test_metadata_values_compare_by_type_and_content() -> None:
    assert typed([1, 2]) == typed(np.array([1, 2], np.int32))
    assert typed([1, 2]) != typed([1, 3])
    assert typed(1) != MetadataValue(1, ValueType.INT32)
    assert typed(1) != 1
