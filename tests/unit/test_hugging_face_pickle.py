"""pytorch_model.bin through the restricted unpickler: what a state dict may hold."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from halfbyte.converters import detect
from halfbyte.converters.format import ReadOptions, WriteOptions
from halfbyte.converters.hugging_face.format import HUGGING_FACE
from halfbyte.converters.hugging_face.pickle_checkpoint import read_pickle_checkpoint
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.encodings.dense import Dense
from support.pickle_files import (
    STORAGE_TYPES,
    named,
    number,
    state_dict,
    storage,
    tensor,
    text,
    tuple_of,
    write_checkpoint,
    write_zip,
)
from support.random_models import random_model

ALLOWED = ReadOptions(allow_pickle=True)
LLAMA = {"model_type": "llama", **random_model("llama").config}


def read_values(path: Path) -> dict[str, np.ndarray]:
    return {n: a.part.read().reshape(a.shape) for n, a in read_pickle_checkpoint(path).items()}


@pytest.mark.parametrize("dtype_name", STORAGE_TYPES)
def test_every_storage_type(dtype_name: str, tmp_path: Path) -> None:
    values = np.arange(12).reshape(3, 4).astype(Dense(dtype_name).dtype)
    path = write_checkpoint(tmp_path / "pytorch_model.bin", {"w": values, "v": values[0]})
    found = read_values(path)
    assert list(found) == ["w", "v"]
    assert np.array_equal(found["w"].view(np.uint8), values.view(np.uint8))
    assert np.array_equal(found["v"].view(np.uint8), values[0].view(np.uint8))


def test_views_of_one_storage(tmp_path: Path) -> None:
    values = np.arange(20, dtype=np.float32)
    stored = storage("FloatStorage", "0", 20)
    content = state_dict(
        {
            "all": tensor(stored, 0, [20], [1]),
            "part": tensor(stored, 4, [2, 3], [3, 1]),
            "turned": tensor(stored, 2, [3, 4], [1, 3]),
            "row": tensor(stored, 5, [1, 4], [999, 1]),
            "scalar": tensor(stored, 7, [], []),
            "empty": tensor(stored, 0, [0, 3], [3, 1]),
        }
    )
    found = read_values(write_zip(tmp_path / "m.bin", content, {"0": values.tobytes()}))
    assert np.array_equal(found["all"], values)
    assert np.array_equal(found["part"], values[4:10].reshape(2, 3))
    assert np.array_equal(found["turned"], values[2:14].reshape(4, 3).T)
    assert np.array_equal(found["row"], values[5:9].reshape(1, 4))
    assert found["scalar"].item() == 7.0
    assert found["empty"].shape == (0, 3)


def test_parameters_sizes_and_nested_dicts(tmp_path: Path) -> None:
    stored = storage("FloatStorage", "0", 4)
    plain = tensor(stored, 0, [2, 2], [2, 1])
    parameter = (
        named("torch._utils", "_rebuild_parameter")
        + tuple_of(plain, pickle.NEWTRUE, pickle.NONE)
        + pickle.REDUCE
    )
    size = named("torch", "Size") + tuple_of(tuple_of(number(2), number(2))) + pickle.REDUCE
    sized = (
        named("torch._utils", "_rebuild_tensor_v2")
        + tuple_of(
            stored, number(0), size, tuple_of(number(2), number(1)), pickle.NEWFALSE, pickle.NONE
        )
        + pickle.REDUCE
    )
    empty = named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    inner = (
        empty
        + pickle.MARK
        + text("w")
        + parameter
        + text("s")
        + sized
        + pickle.SETITEMS
        + pickle.EMPTY_DICT
        + text("_metadata")
        + pickle.NONE
        + pickle.SETITEM
        + pickle.BUILD
    )
    content = b"\x80\x02" + pickle.MARK + text("state_dict") + inner + pickle.DICT + pickle.STOP
    values = np.arange(4, dtype=np.float32)
    found = read_values(write_zip(tmp_path / "m.bin", content, {"0": values.tobytes()}))
    assert np.array_equal(found["w"], values.reshape(2, 2))
    assert np.array_equal(found["s"], values.reshape(2, 2))


def test_float8_over_untyped_storage(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.float32).astype(ml_dtypes.float8_e4m3fn)
    arguments = tuple_of(
        storage("UntypedStorage", "0", 4),
        number(0),
        tuple_of(number(4)),
        tuple_of(number(1)),
        pickle.NEWFALSE,
        pickle.NONE,
        named("torch", "float8_e4m3fn"),
    )
    rebuilt = named("torch._utils", "_rebuild_tensor_v3") + arguments + pickle.REDUCE
    path = write_zip(tmp_path / "m.bin", state_dict({"w": rebuilt}), {"0": values.tobytes()})
    assert read_values(path)["w"].dtype == values.dtype
    assert np.array_equal(read_values(path)["w"].astype(np.float32), [0, 1, 2, 3])


def write_llama(folder: Path, shards: int) -> Path:
    arrays = {n: t.numpy() for n, t in random_model("llama").weights.items()}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    if shards == 1:
        write_checkpoint(folder / "pytorch_model.bin", arrays)
        return folder
    weight_map = {}
    for number_ in range(shards):
        name = f"pytorch_model-{number_ + 1:05d}-of-{shards:05d}.bin"
        part = dict(list(arrays.items())[number_::shards])
        write_checkpoint(folder / name, part)
        weight_map.update(dict.fromkeys(part, name))
    index = json.dumps({"weight_map": weight_map})
    (folder / "pytorch_model.bin.index.json").write_text(index)
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_model_folder(shards: int, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "in", shards)
    with pytest.raises(
        UnsupportedError, match=r"a pickled checkpoint is not supported.*allow-pickle"
    ):
        detect(folder).read(folder, ReadOptions())
    model = detect(folder).read(folder, ALLOWED)
    expected = random_model("llama").by_key()
    assert set(model.by_key()) == set(expected)
    for key, weight in model.by_key().items():
        assert np.array_equal(weight.numpy(), expected[key].numpy())
    HUGGING_FACE.write(model, tmp_path / "out", WriteOptions(threads=2))
    again = HUGGING_FACE.read(tmp_path / "out", ReadOptions())
    assert set(again.by_key()) == set(expected)


def test_missing_shard(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "in", 2)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FormatError, match=r"shard 'pytorch_model-00002-of-00002\.bin' is missing"):
        HUGGING_FACE.read(folder, ALLOWED)


def test_lone_file(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "x.bin", {"w": np.ones((2, 2), np.float32)})
    assert HUGGING_FACE.detect(path)
    with pytest.raises(UnsupportedError, match="allow-pickle"):
        HUGGING_FACE.read(path, ReadOptions())
    assert list(HUGGING_FACE.read(path, ALLOWED).weights) == ["w"]
