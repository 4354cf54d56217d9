"""Models in several GGUF files: which tensor goes where, names, keys, all or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from halfbyte.converters.format import GgufChoices, WriteOptions
from halfbyte.converters.gguf.container import read_container
from halfbyte.converters.gguf.format import GGUF
from halfbyte.converters.gguf.metadata_value import typed
from halfbyte.converters.gguf.output import Output
from halfbyte.converters.gguf.split import read_shards, shard_numbers
from halfbyte.converters.gguf.split_writer import planned_shards, write_shards
from halfbyte.errors import HalfbyteError, QuantizationError, UnsupportedError
from halfbyte.files import atomic_files
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.tensor import ComputedPart, Tensor, tensor_from_array
from support.gguf_models import fitted, read
from support.random_models import random_model


def made(sizes: list[int], **keys: object) -> Output:
    tensors = [tensor_from_array(f"t{i}", np.full(n, i, np.float32)) for i, n in enumerate(sizes)]
    pairs = {"general.architecture": "x", **keys}
    names = [tensor.name for tensor in tensors]
    return Output({key: typed(value) for key, value in pairs.items()}, tensors, names)


def groups(output: Output, choices: GgufChoices) -> list[list[str]]:
    shards = planned_shards(Path("m.gguf"), output, choices)
    return [[tensor.name for tensor in shard.tensors] for shard in shards]


def test_limits() -> None:
    output = made([8, 8, 16, 100, 8])
    assert groups(output, GgufChoices()) == [["t0", "t1", "t2", "t3", "t4"]]
    assert groups(output, GgufChoices(max_tensors=2)) == [["t0", "t1"], ["t2", "t3"], ["t4"]]
    assert groups(output, GgufChoices(max_bytes=64)) == [["t0", "t1"], ["t2"], ["t3"], ["t4"]]
    assert groups(output, GgufChoices(max_bytes=1)) == [["t0"], ["t1"], ["t2"], ["t3"], ["t4"]]
    both = GgufChoices(max_bytes=128, max_tensors=2)
    assert groups(output, both) == [["t0", "t1"], ["t2"], ["t3"], ["t4"]]
    assert groups(made([]), GgufChoices(max_bytes=5)) == [[]]
    kept = GgufChoices(part_of={"t0": 1, "t1": 1, "t2": 1, "t3": 2, "t4": 1})
    assert groups(output, kept) == [[], ["t0", "t1", "t2", "t4"], ["t3"]]


def test_names_and_keys() -> None:
    shards = planned_shards(Path("a/m.gguf"), made([8, 8, 8]), GgufChoices(max_tensors=1))
    assert [str(shard.path) for shard in shards] == [
        "a/m-00001-of-00003.gguf",
        "a/m-00002-of-00003.gguf",
        "a/m-00003-of-00003.gguf",
    ]
    assert list(shards[0].metadata) == [
        "general.architecture",
        *("split.no", "split.tensors.count", "split.count"),
    ]
    assert shards[2].metadata == {
        "split.no": typed(np.uint16(2)),
        "split.count": typed(np.uint16(3)),
        "split.tensors.count": typed(np.int32(3)),
    }
    wide = made([8, 8], **{"general.alignment": np.uint32(64)})
    later = planned_shards(Path("m-00004-of-00009.gguf"), wide, GgufChoices(max_tensors=1))[1]
    assert later.path == Path("m-00002-of-00002.gguf")
    assert later.metadata["general.alignment"] == typed(np.uint32(64))


def test_parts_read_as_one_model(tmp_path: Path) -> None:
    model = fitted(random_model("llama"))
    choices = GgufChoices(max_bytes=40_000)
    options = WriteOptions(gguf=choices)
    told = GGUF.forecast(model, tmp_path / "m.gguf", options)
    GGUF.write(model, tmp_path / "m.gguf", options)
    first = next(iter(told.files))
    assert {path: path.stat().st_size for path in tmp_path.iterdir()} == told.files
    assert len(told.files) > 2
    back = read(first)
    for entry in told.tensors:
        stored = back.weights[entry.name]
        assert stored.nbytes == entry.nbytes
    numbers = shard_numbers(first)
    for number, shard in enumerate(read_shards(first)):
        assert {numbers[info.name] for info in shard.tensors} == {number}
    for file in told.files:
        read_container(file)


def test_too_many_parts() -> None:
    one = tensor_from_array("t", np.zeros(8, np.float32))
    output = Output({}, [one] * 65536, ["t"] * 65536)
    with pytest.raises(UnsupportedError, match="a split into 65536 files is not supported"):
        planned_shards(Path("m.gguf"), output, GgufChoices(max_tensors=1))


def test_a_set_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken(start: int, stop: int) -> np.ndarray:
        raise QuantizationError("t9", "cannot be read")

    part = ComputedPart(np.dtype(np.float32), (1, 8), broken)
    output = made([8, 8])
    output.tensors.append(Tensor("t9", (8,), Dense("float32"), {"data": part}))
    shards = planned_shards(
        tmp_path / "m.gguf",
        Output(output.metadata, output.tensors, ["t0", "t1", "t9"]),
        GgufChoices(max_tensors=1),
    )
    before = tmp_path / "m-00001-of-00003.gguf"
    before.write_bytes(b"older")
    with pytest.raises(QuantizationError):
        write_shards(shards, 1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {before.name: b"older"}


def test_files_get_their_names_together(tmp_path: Path) -> None:
    targets = [tmp_path / name for name in "abc"]
    with atomic_files(targets) as partials:
        for partial in partials:
            partial.write_bytes(partial.name[1:2].encode())
        assert not any(target.exists() for target in targets)
    assert [target.read_bytes() for target in targets] == [b"a", b"b", b"c"]
    with pytest.raises(FileNotFoundError) as error, atomic_files(targets) as partials:
        partials[0].write_bytes(b"new")
    assert error.value.filename == str(targets[1])
    assert [target.read_bytes() for target in targets] == [b"a", b"b", b"c"]
    assert len(list(tmp_path.iterdir())) == 3
    (tmp_path / "folder").mkdir()
    with pytest.raises(HalfbyteError, match="is a folder"), atomic_files([tmp_path / "folder"]):
        raise AssertionError("not reached")
