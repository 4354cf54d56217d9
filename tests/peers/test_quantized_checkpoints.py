"""Quantized checkpoints against the tools that define them: configs, words and logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters import read
from halfbyte.converters.hugging_face.checkpoints.words import pack_words
from halfbyte.ir.encodings.affine import Affine
from support.checkpoint_folders import arrays_of, decoder, quantized, settings_of
from support.model_folders import outputs_of

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

IDS = [1, 5, 9, 100, 200, 33, 7]
RELATIVE_TOLERANCE = 1e-5  # float32 sums in another order


def test_transformers_takes_the_settings_of_gptq(tmp_path: Path) -> None:
    for type_name, sym in (("int4-g32", True), ("int8-g64-asym", False), ("int3", True)):
        said = settings_of(quantized(tmp_path, "hf:gptq", type_name))
        config = transformers.GPTQConfig.from_dict(dict(said))
        assert (config.bits, config.group_size) == (said["bits"], said["group_size"])
        assert config.sym is sym and config.desc_act is False
        assert config.format == ("gptq" if sym else "gptq_v2")


def test_transformers_takes_the_settings_of_awq(tmp_path: Path) -> None:
    said = settings_of(quantized(tmp_path, "hf:awq", "int4-g64-asym"))
    config = transformers.AwqConfig.from_dict(dict(said))
    assert (config.bits, config.group_size, config.zero_point) == (4, 64, True)


@pytest.mark.parametrize(
    ("model_type", "type_name"),
    [("llama", "int4-g32"), ("llama", "int3-g32"), ("qwen2", "int8"), ("qwen2", "fp8-block128")],
)
def test_compressed_tensors_gives_our_logits(
    tmp_path: Path, type_name: str, model_type: str
) -> None:
    """Symmetric types only: transformers 5.23 refuses packed zero points, its peers' own too."""
    pytest.importorskip("compressed_tensors")
    folder = quantized(tmp_path, "hf:compressed-tensors", type_name, decoder(model_type))
    wanted = outputs_of(read(folder), IDS)["logits"]
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found = peer(torch.tensor([IDS])).logits.numpy()
    assert np.abs(found - wanted).max() <= RELATIVE_TOLERANCE * np.abs(wanted).max()


PACKED = ["int4-g32", "int4-g128-asym", "int3-g32-asym", "int8", "int8-g64-asym", "int6-asym"]


@pytest.mark.parametrize("type_name", PACKED)
def test_compressed_tensors_decompresses_the_same_values(tmp_path: Path, type_name: str) -> None:
    compressors: Any = pytest.importorskip("compressed_tensors.compressors")
    schemes: Any = pytest.importorskip("compressed_tensors.quantization")
    folder = quantized(tmp_path, "hf:compressed-tensors", type_name)
    module = "model.layers.0.mlp.down_proj"
    group = settings_of(folder)["config_groups"]["group_0"]
    held = {
        name.removeprefix(f"{module}."): torch.from_numpy(array)
        for name, array in arrays_of(folder).items()
        if name.startswith(module)
    }
    # It multiplies in the scales' type; float32 holds every product.
    held["weight_scale"] = held["weight_scale"].float()
    scheme = schemes.QuantizationScheme(**group)
    found = compressors.PackedQuantizationCompressor.decompress(held, scheme)["weight"].numpy()
    assert np.array_equal(found, read(folder).weights[f"{module}.weight"].decode())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_compressed_tensors_packs_the_same_words(bits: int) -> None:
    helpers: Any = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (16, 96)).astype(np.uint8)
    signed = torch.from_numpy(codes.astype(np.int16) - (1 << (bits - 1))).to(torch.int8)
    words = helpers.pack_to_int32(signed, bits).numpy()
    assert words.tobytes() == pack_words(codes, bits).tobytes()


@pytest.mark.parametrize("type_name", ["int2-g32", "int3-g32", "int4-g32-asym", "int8-g64-asym"])
def test_gptqmodel_unpacks_the_same_values(tmp_path: Path, type_name: str) -> None:
    """Its module decodes to float16, so ours are rounded to it once."""
    linear: Any = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch")
    folder = quantized(tmp_path, "hf:gptq", type_name)
    module, stored = "model.layers.0.mlp.down_proj", arrays_of(folder)
    ours = read(folder).weights[f"{module}.weight"]
    assert isinstance(ours.encoding, Affine)
    said = settings_of(folder)
    layer = linear.TorchLinear(
        bits=said["bits"], group_size=said["group_size"], sym=said["sym"], desc_act=False,
        in_features=ours.columns, out_features=ours.rows, bias=False,
    )  # fmt: skip
    for name in ("qweight", "qzeros", "scales", "g_idx"):
        array = torch.from_numpy(stored[f"{module}.{name}"].copy())
        if name == "qzeros" and said["checkpoint_format"] == "gptq":
            ones = int("1".rjust(said["bits"], "0") * (32 // said["bits"]), 2)
            array = array + ones if said["bits"] != 3 else _next_zeros(array, ours.rows)
        setattr(layer, name, array)
    layer.post_init()
    found = layer.dequantize_weight().float().numpy().T
    assert np.array_equal(found, ours.decode().astype(np.float16).astype(np.float32))


def _next_zeros(words: Any, rows: int) -> Any:
    """Return symmetric zero points of 3 bits as version 2 has them."""
    zeros = np.full((words.shape[0], rows), 4, np.uint8)
    return torch.from_numpy(pack_words(zeros, 3))
