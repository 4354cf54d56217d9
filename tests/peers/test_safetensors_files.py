"""Files we write open in safetensors, torch and transformers; files torch writes are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.architectures import get_architecture
from halfbyte.converters.format import ReadOptions, WriteOptions
from halfbyte.converters.hugging_face.format import HUGGING_FACE
from halfbyte.converters.hugging_face.pickle_checkpoint import read_pickle_checkpoint
from halfbyte.converters.native.format import NATIVE
from halfbyte.converters.weight_map import from_canonical
from halfbyte.errors import FormatError, UnsupportedError
from support.encoded import encoded
from support.random_models import random_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peer

TORCH_TYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
]


def raw(tensor: Any) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def example(dtype_name: str) -> Any:
    return torch.arange(12).reshape(3, 4).to(getattr(torch, dtype_name))


@pytest.mark.parametrize("dtype_name", TORCH_TYPES)
def test_torch_reads_what_we_write(dtype_name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({"w": example(dtype_name)}, tmp_path / "in.safetensors", {"format": "pt"})
    model = HUGGING_FACE.read(tmp_path / "in.safetensors", ReadOptions())
    HUGGING_FACE.write(model, tmp_path / "out.safetensors", WriteOptions())
    found = load_file(tmp_path / "out.safetensors")["w"]
    assert found.dtype == getattr(torch, dtype_name)
    assert raw(found) == raw(example(dtype_name))
    assert (tmp_path / "in.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()


@pytest.mark.parametrize("dtype_name", TORCH_TYPES)
def test_pickles_of_torch(dtype_name: str, tmp_path: Path) -> None:
    value = example(dtype_name)
    torch.save({"w": value, "turned": value.T, "part": value[1:]}, tmp_path / "m.bin")
    found = read_pickle_checkpoint(tmp_path / "m.bin")
    for name, expected in {"w": value, "turned": value.T, "part": value[1:]}.items():
        assert found[name].shape == tuple(expected.shape)
        assert np.ascontiguousarray(found[name].part.read()).tobytes() == raw(expected)


def test_state_dict_of_a_module(tmp_path: Path) -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    torch.save(layer.state_dict(), tmp_path / "a.bin")
    torch.save({"state_dict": layer.state_dict(), "epoch": 3}, tmp_path / "b.bin")
    torch.save(dict(layer.named_parameters()), tmp_path / "c.bin")
    for name in ("a.bin", "b.bin", "c.bin"):
        found = read_pickle_checkpoint(tmp_path / name)
        for key, value in layer.state_dict().items():
            assert np.array_equal(found[key].part.read().reshape(value.shape), value.numpy())


def test_whole_modules_and_old_layouts_are_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.bin")
    with pytest.raises(FormatError, match=r"names 'torch\.nn\.modules\.linear\.Linear'"):
        read_pickle_checkpoint(tmp_path / "module.bin")
    weights = {"w": torch.ones(2)}
    torch.save(weights, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedError, match=r"layout from before version 1\.6"):
        read_pickle_checkpoint(tmp_path / "old.bin")


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gpt2", "bert"])
@pytest.mark.parametrize("shard_bytes", [0, 50_000])
def test_transformers_loads_every_weight(model_type: str, shard_bytes: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_model(model_type)
    HUGGING_FACE.write(model, tmp_path / "out", WriteOptions(shard_bytes=shard_bytes))
    kind = transformers.AutoModel if model_type == "bert" else transformers.AutoModelForCausalLM
    loaded, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    state = loaded.state_dict()
    architecture = get_architecture(model_type)
    written = HUGGING_FACE.read(tmp_path / "out", ReadOptions())
    prefix = "bert." if model_type == "bert" else ""
    for name, tensor in written.weights.items():
        values = state[name.removeprefix(prefix)].numpy()
        assert np.array_equal(values, from_canonical(tensor, architecture).numpy())


def test_native_file_opens_in_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = random_model("llama")
    quantized = encoded("Q4_0").renamed("blocks")
    NATIVE.write(
        model.with_weights({**model.weights, "blocks": quantized}),
        tmp_path / "m.hb",
        WriteOptions(),
    )
    found = load_file(tmp_path / "m.hb")
    for name, tensor in model.weights.items():
        assert np.array_equal(found[name].numpy(), tensor.numpy())
    assert np.array_equal(found["blocks"].numpy(), quantized.read()["data"])
