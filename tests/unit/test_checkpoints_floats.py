"""fp8, FP4, bitsandbytes, modelopt and gpt-oss checkpoints against plain code; damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from halfbyte import pipeline
from halfbyte.converters import read
from halfbyte.converters.hugging_face.checkpoints.float8_parts import block_arrays
from halfbyte.converters.hugging_face.checkpoints.fp4_parts import fp4_arrays, shared_factors
from halfbyte.errors import HalfbyteError, QuantizationError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.nf4 import TABLES
from halfbyte.ir.tensor import Tensor, tensor_from_array
from halfbyte.quant.algorithms.rtn import requantize
from support.checkpoint_folders import quantized, settings_of
from support.encoded import held, normal_rows
from support.model_folders import outputs_of
from support.safetensors_files import write_folder

MODULE = "layers.0.proj"
E4M3, E8M0, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu, ml_dtypes.bfloat16
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
SIGNED = np.concatenate([E2M1, -E2M1])
RNG = np.random.default_rng(11)


def header_folder(path: Path, arrays: dict[str, np.ndarray], config: dict[str, Any]) -> Path:
    """Write a folder by hand: the safetensors package cannot write every type from numpy."""
    names = {"float8_e4m3fn": "F8_E4M3", "float8_e8m0fnu": "F8_E8M0", "bfloat16": "BF16"}
    names |= {"float32": "F32", "uint8": "U8", "int8": "I8", "float16": "F16", "int32": "I32"}
    header, data = {}, b""
    for name, array in arrays.items():
        content = array.tobytes()
        places = [len(data), len(data) + len(content)]
        header[name] = {"dtype": names[array.dtype.name], "shape": list(array.shape)}
        header[name]["data_offsets"] = places
        data += content
    text = json.dumps(header).encode()
    path.mkdir(parents=True, exist_ok=True)
    content = len(text).to_bytes(8, "little") + text + data
    (path / "model.safetensors").write_bytes(content)
    (path / "config.json").write_text(json.dumps(config))
    return path


def weight_of(
    path: Path, arrays: dict[str, Any], said: dict[str, Any], name: str = f"{MODULE}.weight"
) -> Tensor:
    stored = {f"{MODULE}.{end}": np.asarray(array) for end, array in arrays.items()}
    return read(header_folder(path, stored, {"quantization_config": said})).weights[name]


def require(tensor: Tensor, wanted: np.ndarray) -> None:
    assert tensor.decode().tobytes() == np.ascontiguousarray(wanted, np.float32).tobytes()
    pieces = [tensor.decode(a, b) for a, b in ((0, 1), (1, 7), (7, tensor.rows))]
    assert np.concatenate(pieces).tobytes() == tensor.decode().tobytes()


def float8_codes(rows: int, columns: int) -> np.ndarray:
    codes = RNG.integers(0, 256, (rows, columns)).astype(np.uint8)
    return np.where(codes & 0x7F == 0x7F, 0, codes).astype(np.uint8).view(E4M3)


BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float8_e8m0fnu"])
def test_blocks_of_fp8_with_partial_edges(tmp_path: Path, kind: str) -> None:
    codes = float8_codes(150, 300)
    scales = np.exp2(RNG.integers(-9, 3, (2, 3))) * (1.25 if kind != "float8_e8m0fnu" else 1)
    stored = scales.astype(np.float32).astype(np.dtype(kind))
    tensor = weight_of(tmp_path, {"weight": codes, "weight_scale_inv": stored}, BLOCKS)
    suffix = {"float32": "", "bfloat16": "-bf16", "float8_e8m0fnu": "-ue8m0"}[kind]
    assert tensor.encoding.name == f"fp8-block128{suffix}"
    wide = stored.astype(np.float32).repeat(128, 0)[:150].repeat(128, 1)[:, :300]
    require(tensor, codes.astype(np.float32) * wide)


def test_other_places_of_fp8_scales(tmp_path: Path) -> None:
    codes = float8_codes(40, 96)
    values = codes.astype(np.float32)
    whole = {**BLOCKS, "weight_block_size": None}
    for number, scale in enumerate((np.float32(0.5), np.array([0.5], "f4"))):
        arrays = {"weight": codes, "weight_scale_inv": scale}
        tensor = weight_of(tmp_path / str(number), arrays, whole)
        assert tensor.encoding.name == "fp8-tensor"
        require(tensor, values * np.float32(0.5))
    flat = {**BLOCKS, "weight_block_size": [1, 32]}
    scales = RNG.random((40, 3)).astype(np.float32)
    tensor = weight_of(tmp_path / "g", {"weight": codes, "weight_scale_inv": scales}, flat)
    assert tensor.encoding.name == "fp8-g32"
    require(tensor, values * scales.repeat(32, 1))


@pytest.mark.parametrize("type_name", ["fp8-block128", "fp8-tensor", "fp8-block128-ue8m0"])
def test_fp8_written(tmp_path: Path, type_name: str) -> None:
    folder = quantized(tmp_path, "hf:fp8", type_name)
    said, arrays = settings_of(folder), arrays_as_stored(folder)
    assert said["quant_method"] == "fp8" and "lm_head" in said["modules_to_not_convert"]
    assert said["weight_block_size"] == (None if type_name == "fp8-tensor" else [128, 128])
    plain, back = read(quantized(tmp_path, "hb", type_name)), read(folder)
    name = "model.layers.0.mlp.down_proj"
    assert arrays[f"{name}.weight"] == ("F8_E4M3", [128, 256])
    shape = [1] if type_name == "fp8-tensor" else [1, 2]
    assert arrays[f"{name}.weight_scale_inv"] == ("F32", shape)
    for key, tensor in plain.weights.items():
        if key.endswith("_proj.weight"):
            np.testing.assert_array_equal(back.weights[key].decode(), tensor.decode())
    same_logits(tmp_path, folder)


def arrays_as_stored(folder: Path) -> dict[str, tuple[str, list[int]]]:
    content = (folder / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return {n: (e["dtype"], e["shape"]) for n, e in header.items() if n != "__metadata__"}


def same_logits(tmp_path: Path, folder: Path) -> None:
    plain = tmp_path / "plain"
    pipeline.convert(folder, plain, to="hf", type="float32")
    ids = [1, 5, 9, 200, 17, 3]
    got, wanted = outputs_of(read(folder), ids), outputs_of(read(plain), ids)
    for key, value in wanted.items():
        np.testing.assert_allclose(got[key], value, rtol=0, atol=2e-5 * np.abs(value).max())


def test_rows_that_do_not_share_are_not_folded() -> None:
    plain = tensor_from_array(f"{MODULE}.weight", normal_rows(256, 128))
    tensor = held(requantize(plain, encoding_from_name("fp8-block128")))
    moved = tensor.take_rows(np.arange(256)[::-1].copy())
    moved = moved.take_rows(np.roll(np.arange(256), 64))
    with pytest.raises(QuantizationError, match="different scales"):
        block_arrays(moved, "weight_scale_inv", np.dtype(np.float32))[1].part.read()


def fp4_values(packed: np.ndarray) -> np.ndarray:
    nibbles = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1)
    return SIGNED[nibbles]


def nvfp4_arrays(rows: int, columns: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    packed = RNG.integers(0, 256, (rows, columns // 2)).astype(np.uint8)
    scales = RNG.uniform(0.1, 400, (rows, columns // 16)).astype(np.float32).astype(E4M3)
    return {"weight_scale": scales}, packed, scales.astype(np.float32)


def test_nvfp4_of_compressed_tensors_and_of_modelopt(tmp_path: Path) -> None:
    arrays, packed, scales = nvfp4_arrays(24, 64)
    divisor = np.array([3000.0], np.float32)
    said: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    both = {**arrays, "weight_packed": packed, "weight_global_scale": divisor}
    tensor = weight_of(tmp_path / "ct", both, said)
    factor = np.float32(1) / divisor
    require(tensor, fp4_values(packed) * (scales * factor).repeat(16, 1))
    said = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    both = {**arrays, "weight": packed, "weight_scale_2": np.float32(0.0125)}
    tensor = weight_of(tmp_path / "mo", both, said)
    require(tensor, fp4_values(packed) * (scales * np.float32(0.0125)).repeat(16, 1))
    codes = float8_codes(24, 64)
    both = {"weight": codes, "weight_scale": np.float32(0.3), "input_scale": np.float32(2)}
    stored = {f"{MODULE}.{end}": np.asarray(array) for end, array in both.items()}
    folder = header_folder(tmp_path / "f8", stored, {"quantization_config": said})
    model = read(folder)
    require(model.weights[f"{MODULE}.weight"], codes.astype(np.float32) * np.float32(0.3))
    assert any("activations stay float" in note for note in model.warnings)


def test_mxfp4_of_compressed_tensors_and_of_gpt_oss(tmp_path: Path) -> None:
    packed = RNG.integers(0, 256, (24, 32)).astype(np.uint8)
    exponents = RNG.integers(110, 130, (24, 2)).astype(np.uint8)
    wanted = fp4_values(packed) * np.exp2(exponents.astype(np.float32) - 127).repeat(32, 1)
    said: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
    arrays = {"weight_packed": packed, "weight_scale": exponents}
    require(weight_of(tmp_path / "ct", arrays, said), wanted)
    name = f"{MODULE}.experts.down_proj"
    stored = {f"{name}_blocks": packed.reshape(3, 8, 2, 16)}
    stored[f"{name}_scales"] = exponents.reshape(3, 8, 2)
    said = {"quant_method": "mxfp4"}
    folder = header_folder(tmp_path / "oss", stored, {"quantization_config": said})
    tensor = read(folder).weights[name]
    assert tensor.shape == (3, 8, 64)
    require(tensor, wanted)


@pytest.mark.parametrize("type_name", ["nvfp4", "mxfp4", "fp8", "fp8-tensor", "fp8-block128"])
def test_compressed_tensors_written(tmp_path: Path, type_name: str) -> None:
    folder = quantized(tmp_path, "hf:compressed-tensors", type_name)
    plain, back = read(quantized(tmp_path, "hb", type_name)), read(folder)
    for key, tensor in plain.weights.items():
        if key.endswith("_proj.weight"):
            np.testing.assert_array_equal(back.weights[key].decode(), tensor.decode())
    said = settings_of(folder)
    weights = said["config_groups"]["group_0"]["weights"]
    assert weights["type"] == "float" and weights["symmetric"] is True
    if type_name == "nvfp4":
        assert said["format"] == "nvfp4-pack-quantized" and weights["group_size"] == 16
        arrays = arrays_of_any(folder)
        parent = "model.layers.0.self_attn"
        factors = {arrays[f"{parent}.{n}_proj.weight_global_scale"] for n in "qkv"}
        assert len(factors) == 1
    same_logits(tmp_path, folder)


def arrays_of_any(folder: Path) -> dict[str, bytes]:
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    places = {n: e["data_offsets"] for n, e in header.items()}
    return {n: content[8 + length + a : 8 + length + b] for n, (a, b) in places.items()}


def test_fused_nvfp4_weights_share_the_largest_factor() -> None:
    tensors = []
    for name, size in (("q_proj", 1.0), ("k_proj", 0.2), ("o_proj", 0.01)):
        rows = normal_rows(16, 64) * np.float32(size)
        rows[3, :16] = 0
        plain = tensor_from_array(f"model.layers.0.self_attn.{name}.weight", rows)
        tensors.append(held(requantize(plain, encoding_from_name("nvfp4"))))
    factors = shared_factors(tensors)
    own = [float(t.read()["tensor_scales"][0, 0]) for t in tensors]
    assert own[0] > own[1] > own[2]
    assert [float(factors[t.name]) for t in tensors] == [own[0], own[0], own[2]]
    for tensor in tensors:
        factor = factors[tensor.name]
        codes, scales, whole = (a.part.read() for a in fp4_arrays(tensor, factor))
        assert whole[0] == 1 / factor
        values = fp4_values(codes) * (scales.astype(np.float32) * factor).repeat(16, 1)
        np.testing.assert_array_equal(values, tensor.decode())


def bnb_state(kind: str, shape: list[int], **more: Any) -> np.ndarray:
    said = {"quant_type": kind, "blocksize": 64, "dtype": "float16", "shape": shape, **more}
    return np.frombuffer(json.dumps(said).encode(), np.uint8)


def bnb_arrays(kind: str, rows: int, columns: int) -> tuple[dict[str, Any], np.ndarray]:
    table = TABLES["nf4" if kind == "nf4" else "bnb-fp4"]
    size = rows * columns
    packed = RNG.integers(0, 256, (-(-size // 2), 1)).astype(np.uint8)
    absmax = RNG.random(-(-size // 64)).astype(np.float32)
    codes = np.stack([packed[:, 0] >> 4, packed[:, 0] & 15], axis=1).reshape(-1)[:size]
    wanted = (table[codes] * absmax.repeat(64)[:size]).reshape(rows, columns)
    arrays = {
        "weight": packed,
        "weight.absmax": absmax,
        "weight.quant_map": table,
        f"weight.quant_state.bitsandbytes__{kind}": bnb_state(kind, [rows, columns]),
    }
    return arrays, wanted


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(24, 128), (24, 96), (10, 100), (9, 33), (8, 32)])
def test_bitsandbytes_of_four_bits(tmp_path: Path, kind: str, shape: tuple[int, int]) -> None:
    arrays, wanted = bnb_arrays(kind, *shape)
    tensor = weight_of(tmp_path, arrays, BNB)
    assert tensor.shape == shape
    require(tensor, wanted)


def test_nested_scales_of_bitsandbytes(tmp_path: Path) -> None:
    rows, columns = 150, 128
    arrays, _ = bnb_arrays("nf4", rows, columns)
    blocks = rows * columns // 64
    codes = RNG.integers(0, 256, blocks).astype(np.uint8)
    levels = np.sort(RNG.uniform(-1, 1, 256)).astype(np.float32)
    outer = RNG.random(2).astype(np.float32)
    state = bnb_state("nf4", [rows, columns], nested_blocksize=256, nested_offset=0.75)
    arrays |= {
        "weight.absmax": codes,
        "weight.nested_absmax": outer,
        "weight.nested_quant_map": levels,
        "weight.quant_state.bitsandbytes__nf4": state,
    }
    absmax = levels[codes] * outer.repeat(256)[:blocks] + np.float32(0.75)
    packed = arrays["weight"][:, 0]
    values = TABLES["nf4"][np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)]
    wanted = (values * absmax.repeat(64)).reshape(rows, columns)
    require(weight_of(tmp_path, arrays, BNB), wanted)


def test_bitsandbytes_of_eight_bits(tmp_path: Path) -> None:
    codes = RNG.integers(-127, 128, (12, 40)).astype(np.int8)
    largest = RNG.random(12).astype(np.float32)
    arrays = {"weight": codes, "SCB": largest, "weight_format": np.array(0, np.uint8)}
    tensor = weight_of(tmp_path / "a", arrays, {"quant_method": "bitsandbytes"})
    assert tensor.encoding.name == "int8-f32"
    require(tensor, codes.astype(np.float32) * (largest / np.float32(127))[:, None])
    arrays["weight_format"] = np.array(2, np.uint8)
    with pytest.raises(UnsupportedError, match="weight_format 2"):
        weight_of(tmp_path / "b", arrays, {"quant_method": "bitsandbytes"})


def changed(**change: Any) -> dict[str, Any]:
    arrays, _ = bnb_arrays("nf4", 24, 128)
    renamed = {key.replace("__", "."): value for key, value in change.items()}
    both = {**arrays, **renamed}
    return {name: array for name, array in both.items() if array is not None}


STATE = "weight.quant_state.bitsandbytes__nf4"
NAN = np.full(48, np.nan, np.float32)
BAD_BNB: list[tuple[str, dict[str, Any], str]] = [
    ("1 absmax too short", changed(weight__absmax=np.ones(47, "f4")), "absmax' has shape"),
    ("2 absmax of another type", changed(weight__absmax=np.ones(48, "f2")), "float32 were"),
    ("3 NaN among the scales", changed(weight__absmax=NAN), "NaN or infinite"),
    ("4 another table", changed(weight__quant_map=np.linspace(-1, 1, 16).astype("f4")), "table"),
    ("5 no table", changed(weight__quant_map=None), "quant_map' is missing"),
    ("6 too few bytes", changed(weight=np.zeros((99, 1), "u1")), "99 bytes, 1536 were"),
    ("7 state is no JSON", {**changed(), STATE: np.zeros(4, np.uint8)}, "is no JSON"),
    ("8 no state", {k: v for k, v in changed().items() if k != STATE}, "nf4' is missing"),
    ("9 no shape", {**changed(), STATE: bnb_state("nf4", [])}, "names no shape"),
    ("10 codes without nested map", changed(weight__absmax=np.ones(48, "u1")), "float32 were"),
    (
        "11 nested map missing",
        changed(weight__absmax=np.ones(48, "u1"), weight__nested_absmax=np.ones(1, "f4")),
        "nested_quant_map' is missing",
    ),
]


@pytest.mark.parametrize(("case", "arrays", "message"), BAD_BNB, ids=[c for c, *_ in BAD_BNB])
def test_damaged_bitsandbytes(
    tmp_path: Path, case: str, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(HalfbyteError, match=message):
        weight_of(tmp_path, arrays, BNB)


CODES = float8_codes(130, 130)
NV: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
PACKED = np.zeros((8, 32), np.uint8)
BAD_FLOATS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("1 scales of other blocks", {"weight": CODES, "weight_scale_inv": np.ones((1, 2), "f4")},
     BLOCKS, r"\[2, 2\] was required"),
    ("2 block is no pair", {"weight": CODES, "weight_scale_inv": np.ones((2, 2), "f4")},
     {**BLOCKS, "weight_block_size": 128}, "the config's block is 128"),
    ("2b block is huge", {"weight": CODES, "weight_scale_inv": np.ones((1, 2), "f4")},
     {**BLOCKS, "weight_block_size": [1 << 70, 128]}, "the config's block is .*; correct"),
    ("3 codes of another type", {"weight": CODES.astype("f4"),
     "weight_scale_inv": np.ones((2, 2), "f4")}, BLOCKS, "float8_e4m3fn were required"),
    ("4 no codes", {"weight_scale_inv": np.ones((2, 2), "f4")}, BLOCKS, "weight' is missing"),
    ("5 factor is 0", {"weight": PACKED, "weight_scale": np.ones((8, 4), E4M3),
     "weight_scale_2": np.float32(0)}, NV, "finite number other than 0"),
    ("6 factor is NaN", {"weight": PACKED, "weight_scale": np.ones((8, 4), E4M3),
     "weight_scale_2": np.float32(np.nan)}, NV, "finite number other than 0"),
    ("7 two factors", {"weight": PACKED, "weight_scale": np.ones((8, 4), E4M3),
     "weight_scale_2": np.ones(2, "f4")}, NV, r"\[1\] was required"),
    ("8 groups of 32", {"weight": PACKED, "weight_scale": np.ones((8, 2), E4M3),
     "weight_scale_2": np.float32(1)}, NV, "groups of 16"),
    ("9 a factor of the input", {"weight": PACKED, "weight_scale": np.ones((8, 4), E4M3),
     "weight_scale_2": np.float32(1), "pre_quant_scale": np.ones(64, "f4")}, NV, "pre_quant"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "arrays", "said", "message"), BAD_FLOATS, ids=[c for c, *_ in BAD_FLOATS]
)
def test_damaged_floats(
    tmp_path: Path, case: str, arrays: dict[str, Any], said: dict[str, Any], message: str
) -> None:
    with pytest.raises(HalfbyteError, match=message):
        weight_of(tmp_path, arrays, said)


def test_scales_that_are_nan_are_told_when_they_are_read(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"weight": CODES, "weight_scale_inv": np.full((2, 2), np.nan, "f4")}
    with pytest.raises(HalfbyteError, match="NaN or infinite"):
        weight_of(tmp_path / "a", arrays, BLOCKS).decode()
    arrays = {"weight_packed": PACKED, "weight_scale": np.full((8, 2), 255, np.uint8)}
    said = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
    with pytest.raises(HalfbyteError, match="scale that is NaN"):
        weight_of(tmp_path / "b", arrays, said).decode()
    arrays = {"weight": PACKED, "weight_scale": np.full((8, 4), 0x7F, np.uint8).view(E4M3)}
    arrays["weight_scale_2"] = np.float32(1)
    with pytest.raises(HalfbyteError, match="scale that is NaN"):
        weight_of(tmp_path / "c", arrays, NV).decode()


def test_blocks_of_gpt_oss_that_do_not_fit(tmp_path: Path) -> None:
    blocks = {"w_blocks": np.zeros((2, 4, 2, 16), np.uint8)}
    said = {"quantization_config": {"quant_method": "mxfp4"}}
    for number, scales in enumerate((None, np.zeros((2, 4, 3), np.uint8))):
        arrays = {**blocks, **({} if scales is None else {"w_scales": scales})}
        with pytest.raises(HalfbyteError, match="groups"):
            read(header_folder(tmp_path / str(number), arrays, said))


def test_formats_that_are_only_read_are_no_flavours(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", {"w.weight": normal_rows(4, 4)})
    with pytest.raises(UnsupportedError, match="flavour 'bitsandbytes'"):
        pipeline.convert(tmp_path / "in", tmp_path / "out", to="hf:bitsandbytes")


@pytest.mark.parametrize(("type_name", "kept"), [("mxfp4", "MXFP4"), ("nvfp4", "NVFP4")])
def test_small_floats_go_to_gguf_as_they_are(tmp_path: Path, type_name: str, kept: str) -> None:
    source = quantized(tmp_path, "hf:compressed-tensors", type_name)
    target = tmp_path / "model.gguf"
    pipeline.convert(source, target)
    before, after = read(source).by_key(), read(target).by_key()
    moved = [key for key, tensor in before.items() if tensor.encoding.is_quantized]
    assert len(moved) == 7
    for key in moved:
        assert after[key].encoding.name == kept
    layer_free = [key for key in moved if "query" not in str(key) and "key" not in str(key)]
    for key in layer_free:
        np.testing.assert_array_equal(after[key].decode(), before[key].decode())
