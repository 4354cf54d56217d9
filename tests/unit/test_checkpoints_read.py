"""Arrays of quantized checkpoints, packed one value at a time, are read as what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from halfbyte.converters import read
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.tensor import Tensor
from support.checkpoint_words import awq_arrays, gptq_arrays, packed_arrays, values_of
from support.safetensors_files import write_folder

OUT, IN = 32, 64
MODULE = "layers.0.proj"


def random_codes(bits: int, groups: int, symmetric: bool = False) -> tuple[Any, Any, Any]:
    """Return codes [out, in], zero points and scales [out, groups], some scales negative."""
    generator = np.random.default_rng(bits * 100 + groups)
    codes = generator.integers(0, 1 << bits, (OUT, IN)).astype(np.uint8)
    zeros = generator.integers(0, 1 << bits, (OUT, groups)).astype(np.uint8)
    if symmetric:
        zeros[:] = 1 << (bits - 1)
    scales = generator.standard_normal((OUT, groups)).astype(np.float16)
    return codes, zeros, scales


def read_weight(
    folder: Path, arrays: dict[str, np.ndarray], settings: dict[str, Any] | None
) -> Tensor:
    """Return the weight of a folder that holds one module."""
    config = {} if settings is None else {"quantization_config": settings}
    weights = {f"{MODULE}.{name}": array for name, array in arrays.items()}
    write_folder(folder, weights, config)
    return read(folder).weights[f"{MODULE}.weight"]


def require(tensor: Tensor, codes: Any, zeros: Any, scales: Any, group: Any) -> None:
    wanted = values_of(codes, zeros, scales, group)
    assert np.array_equal(tensor.decode(), wanted)
    pieces = [tensor.decode(a, b) for a, b in ((0, 1), (1, 9), (9, 27), (27, OUT))]
    assert np.array_equal(np.concatenate(pieces), wanted)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("version", "less"), [("gptq", 1), ("gptq_v2", 0), (None, 1)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq(tmp_path: Path, bits: int, version: str, less: int, symmetric: bool) -> None:
    codes, zeros, scales = random_codes(bits, 2, symmetric)
    arrays = gptq_arrays(codes, zeros, scales, bits, less)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": 32, "sym": symmetric}
    if version:
        settings["checkpoint_format"] = version
    tensor = read_weight(tmp_path, arrays, settings)
    assert tensor.encoding == Affine(bits, 32, "none" if symmetric else "uint8")
    require(tensor, codes, zeros, scales, np.arange(IN) // 32)


def test_a_zero_point_of_0_survives_version_1(tmp_path: Path) -> None:
    codes, zeros, scales = random_codes(4, 2)
    zeros[:, 0] = 0
    arrays = gptq_arrays(codes, zeros, scales, 4, 1)
    assert int(arrays["qzeros"].view(np.uint32)[0, 0]) == 0xFFFFFFFF
    tensor = read_weight(tmp_path, arrays, {"quant_method": "gptq", "bits": 4, "group_size": 32})
    require(tensor, codes, zeros, scales, np.arange(IN) // 32)


def test_gptq_with_act_order(tmp_path: Path) -> None:
    codes, zeros, scales = random_codes(4, 4)
    group = np.random.default_rng(3).permutation(np.arange(IN) // 16).astype(np.int32)
    arrays = gptq_arrays(codes, zeros, scales, 4, 1) | {"g_idx": group}
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True}
    tensor = read_weight(tmp_path, arrays, settings)
    assert tensor.encoding == Affine(4, 16, "uint8", act_order=True)
    require(tensor, codes, zeros, scales, group)


def test_a_group_index_in_order_is_no_act_order(tmp_path: Path) -> None:
    codes, zeros, scales = random_codes(4, 4)
    group = (np.arange(IN) // 16).astype(np.int32)
    arrays = gptq_arrays(codes, zeros, scales, 4, 1) | {"g_idx": group}
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True}
    assert read_weight(tmp_path, arrays, settings).encoding == Affine(4, 16, "uint8")


def test_gptq_with_one_group_for_a_row(tmp_path: Path) -> None:
    codes, zeros, scales = random_codes(4, 1)
    arrays = gptq_arrays(codes, zeros, scales, 4, 1) | {"g_idx": np.zeros(IN, np.int32)}
    settings = {"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": True}
    tensor = read_weight(tmp_path, arrays, settings)
    assert tensor.encoding == Affine(4, 0, "uint8")
    require(tensor, codes, zeros, scales, np.zeros(IN, int))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_scales_keep_their_type(tmp_path: Path, dtype: Any) -> None:
    codes, zeros, scales = random_codes(4, 2)
    arrays = gptq_arrays(codes, zeros, scales.astype(dtype), 4, 0)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}
    tensor = read_weight(tmp_path, arrays, settings)
    assert tensor.parts["scales"].dtype == np.dtype(dtype)
    require(tensor, codes, zeros, scales.astype(dtype).astype(np.float32), np.arange(IN) // 32)


def test_an_override_changes_bits_and_groups(tmp_path: Path) -> None:
    codes, zeros, scales = random_codes(8, 4)
    arrays = gptq_arrays(codes, zeros, scales, 8, 1)
    own = {"bits": 8, "group_size": 16}
    said: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    said["dynamic"] = {"-:other": {}, r"+:layers\.0\..*": own}
    tensor = read_weight(tmp_path, arrays, said)
    require(tensor, codes, zeros, scales, np.arange(IN) // 16)


def test_symmetric_words_of_version_2_under_the_name_of_1(tmp_path: Path) -> None:
    codes, zeros, scales = random_codes(4, 2, symmetric=True)
    arrays = gptq_arrays(codes, zeros, scales, 4, 0)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
    tensor = read_weight(tmp_path, arrays, settings)
    require(tensor, codes, zeros, scales, np.arange(IN) // 32)
    assert any("gptq_v2" in warning for warning in read(tmp_path).warnings)


def test_a_file_of_older_tools_says_what_config_does_not(tmp_path: Path) -> None:
    codes, zeros, scales = random_codes(4, 2)
    arrays = gptq_arrays(codes, zeros, scales, 4, 1)
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 32}')
    require(read_weight(tmp_path, arrays, None), codes, zeros, scales, np.arange(IN) // 32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_names_alone_tell_gptq(tmp_path: Path, bits: int) -> None:
    codes, zeros, scales = random_codes(bits, 2)
    arrays = gptq_arrays(codes, zeros, scales, bits, 1)
    require(read_weight(tmp_path, arrays, None), codes, zeros, scales, np.arange(IN) // 32)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"},
        {"w_bit": 4, "q_group_size": 16, "version": "GEMM", "zero_point": True},
        {"quant_method": "auto-round", "bits": 4, "group_size": 16,
         "packing_format": "auto_round:auto_awq"},
        None,
    ],
)  # fmt: skip
def test_awq(tmp_path: Path, symmetric: bool, settings: dict[str, Any] | None) -> None:
    codes, zeros, scales = random_codes(4, 4, symmetric)
    tensor = read_weight(tmp_path, awq_arrays(codes, zeros, scales), settings)
    assert tensor.encoding == Affine(4, 16, "none" if symmetric else "uint8")
    require(tensor, codes, zeros, scales, np.arange(IN) // 16)


def compressed(bits: int, size: int | None, symmetric: bool, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": size}
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"group_0": group}, "ignore": ["lm_head"], **more}  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_pack_quantized(tmp_path: Path, bits: int, dense: bool, symmetric: bool) -> None:
    codes, zeros, scales = random_codes(bits, 2, symmetric)
    arrays = packed_arrays(codes, None if symmetric else zeros, scales, bits, dense)
    tensor = read_weight(tmp_path, arrays, compressed(bits, 32, symmetric))
    assert tensor.encoding == Affine(bits, 32, "none" if symmetric else "uint8")
    require(tensor, codes, zeros, scales, np.arange(IN) // 32)


def test_pack_quantized_by_channel_keeps_its_length(tmp_path: Path) -> None:
    codes, zeros, scales = random_codes(4, 1, symmetric=True)
    arrays = packed_arrays(codes[:, :61], None, scales, 4)
    tensor = read_weight(tmp_path, arrays, compressed(4, None, True))
    assert tensor.shape == (OUT, 61)
    assert np.array_equal(
        tensor.decode(), values_of(codes[:, :61], zeros, scales, np.zeros(61, int))
    )


def test_pack_quantized_with_a_group_index(tmp_path: Path) -> None:
    codes, zeros, scales = random_codes(4, 4)
    group = np.random.default_rng(5).permutation(np.arange(IN) // 16).astype(np.int32)
    arrays = packed_arrays(codes, zeros, scales, 4) | {"weight_g_idx": group}
    tensor = read_weight(tmp_path, arrays, compressed(4, 16, False))
    assert tensor.encoding == Affine(4, 16, "uint8", act_order=True)
    require(tensor, codes, zeros, scales, group)


@pytest.mark.parametrize("format_name", ["int-quantized", "naive-quantized"])
@pytest.mark.parametrize("shape", [(OUT, 1), (1,), (OUT, 4)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_of_a_byte(
    tmp_path: Path, format_name: str, shape: tuple[int, ...], symmetric: bool
) -> None:
    generator = np.random.default_rng(len(shape) + symmetric)
    codes = generator.integers(-128, 128, (OUT, IN)).astype(np.int8)
    scales = generator.standard_normal(shape).astype(ml_dtypes.bfloat16)
    zeros = np.zeros(shape, np.int8) if symmetric else generator.integers(-9, 9, shape)
    arrays = {"weight": codes, "weight_scale": scales}
    if not symmetric:
        arrays["weight_zero_point"] = zeros.astype(np.int8)
    settings = compressed(8, (shape[-1] > 1 and 16) or None, symmetric, format=format_name)
    tensor = read_weight(tmp_path, arrays, settings)
    assert tensor.encoding.name.startswith("int8")
    groups = shape[-1]
    spread = [np.broadcast_to(np.reshape(a, (-1, groups)), (OUT, groups)) for a in (zeros, scales)]
    require(tensor, codes, spread[0], spread[1].astype(np.float32), np.arange(IN) // (IN // groups))


def test_groups_of_modules_by_name_pattern_and_class(tmp_path: Path) -> None:
    settings = compressed(4, 32, True)
    groups = settings["config_groups"]
    for name, bits in (("re:.*up$", 8), ("layers.0.down", 3)):
        weights = {"num_bits": bits, "symmetric": True, "group_size": 32}
        groups[name] = {"targets": [name], "weights": weights, "format": "pack-quantized"}
    settings["format"] = "mixed-precision"
    arrays, wanted = {}, {}
    for module, bits in (("layers.0.gate", 4), ("layers.0.up", 8), ("layers.0.down", 3)):
        codes, zeros, scales = random_codes(bits, 2, symmetric=True)
        packed = packed_arrays(codes, None, scales, bits)
        arrays |= {f"{module}.{name}": array for name, array in packed.items()}
        wanted[f"{module}.weight"] = (bits, codes, zeros, scales)
    write_folder(tmp_path, arrays, {"quantization_config": settings})
    weights = read(tmp_path).weights
    assert weights.keys() == wanted.keys()
    for name, (bits, *rest) in wanted.items():
        assert weights[name].encoding == Affine(bits, 32)
        require(weights[name], *rest, np.arange(IN) // 32)
