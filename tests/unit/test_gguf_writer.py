"""Writing GGUF files: order, padding, threads, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from halfbyte.converters.gguf import writer
from halfbyte.converters.gguf.container import read_container
from halfbyte.converters.gguf.ggml_types import ValueType
from halfbyte.converters.gguf.metadata_value import MetadataValue, typed
from halfbyte.converters.gguf.writer import stored_bytes, stored_type, write_gguf
from halfbyte.errors import HalfbyteError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.tensor import ArrayPart, Tensor, tensor_from_array


def matrices(count: int = 5) -> list[Tensor]:
    random = np.random.default_rng(0)
    shapes = [(7, 64), (3,), (2, 5, 32), (0, 32), (33, 96)]
    return [
        tensor_from_array(f"t{index}.weight", random.standard_normal(shape).astype(np.float32))
        for index, shape in enumerate(shapes[:count])
    ]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_bytes_do_not_depend_on_threads(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CHUNK_BYTES", 300)
    tensors, path = matrices(), tmp_path / "out.gguf"
    pieces: list[int] = []
    write_gguf(path, {"k": typed("v")}, tensors, threads, pieces.append)
    reference = tmp_path / "reference.gguf"
    monkeypatch.setattr(writer, "CHUNK_BYTES", 1 << 22)
    write_gguf(reference, {"k": typed("v")}, tensors)
    assert path.read_bytes() == reference.read_bytes()
    assert sum(pieces) == sum(stored_bytes(tensor) for tensor in tensors)
    assert len(pieces) > len(tensors)
    container = read_container(path)
    assert container.problems == ()
    for info, tensor in zip(container.tensors, tensors, strict=True):
        np.testing.assert_array_equal(container.tensor(info).numpy(), tensor.numpy())


def test_alignment_key_is_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    write_gguf(path, {"general.alignment": typed(128)}, matrices(2))
    container = read_container(path)
    assert container.alignment == 128
    assert path.stat().st_size % 128 == 0
    np.testing.assert_array_equal(
        container.tensor(container.tensors[1]).numpy(), matrices(2)[1].numpy()
    )


@pytest.mark.parametrize(
    "entry", [typed(3), typed(0), MetadataValue(32, ValueType.UINT64), typed("32")]
)
def test_bad_alignment_is_refused(tmp_path: Path, entry: MetadataValue) -> None:
    with pytest.raises(UnsupportedError, match=r"general.alignment: alignment"):
        write_gguf(tmp_path / "out.gguf", {"general.alignment": entry}, [])
    assert not list(tmp_path.iterdir())


def test_file_without_tensors_has_no_padding(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    write_gguf(path, {"k": typed(1)}, [])
    assert path.stat().st_size == 24 + 8 + 1 + 4 + 4
    assert read_container(path).tensors == ()


def tensor_of(name: str, encoding: str, shape: tuple[int, ...]) -> Tensor:
    found = encoding_from_name(encoding)
    columns = shape[-1]
    rows = int(np.prod(shape[:-1]))
    specs = found.part_specs(rows, columns)
    parts = {n: ArrayPart(np.zeros(s.shape, s.dtype)) for n, s in specs.items()}
    return Tensor(name, shape, found, parts)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (tensor_of("w", "float8_e4m3fn", (2, 32)), "float8_e4m3fn in GGUF is not supported"),
        (tensor_of("w", "int4-g32", (2, 32)), "int4-g32 in GGUF is not supported"),
        (tensor_of("w", "float32", (1, 1, 1, 1, 2)), "5 dimensions in GGUF"),
        (tensor_of("", "float32", (1, 2)), "this name in GGUF"),
        (tensor_of("n" * 64, "float32", (1, 2)), "this name in GGUF"),
        (tensor_of("a\0b", "float32", (1, 2)), "this name in GGUF"),
    ],
)
def test_what_no_file_can_hold(tmp_path: Path, tensor: Tensor, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        write_gguf(tmp_path / "out.gguf", {}, [tensor])
    assert not list(tmp_path.iterdir())


def test_rows_that_do_not_divide_into_blocks() -> None:
    whole = tensor_of("w", "Q8_0", (2, 64))
    broken = Tensor("w", (2, 60), whole.encoding, whole.parts)
    with pytest.raises(UnsupportedError, match=r"Q8_0 with rows of 60 .* multiples of 32"):
        stored_type(broken)


def test_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    class Failing:
        dtype = np.dtype(np.float32)
        shape = (2, 4)

        def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
            raise HalfbyteError("cannot read")

    tensor = Tensor("w", (2, 4), encoding_from_name("float32"), {"data": Failing()})
    with pytest.raises(HalfbyteError, match="cannot read"):
        write_gguf(tmp_path / "out.gguf", {}, [tensor], threads=2)
    assert not list(tmp_path.iterdir())
