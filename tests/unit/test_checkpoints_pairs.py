"""Codes are carried between quantized checkpoints and other containers, never rounded again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from halfbyte import pipeline
from halfbyte.converters import read
from halfbyte.errors import UnsupportedError
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role
from support.checkpoint_folders import arrays_of, decoder, quantized, settings_of
from support.checkpoint_words import gptq_arrays
from support.model_folders import outputs_of
from support.safetensors_files import write_folder

G, A, C, M = "hf:gptq", "hf:awq", "hf:compressed-tensors", "hf:mlx"
EXACT, REGROUPED = "exact", "exact after regrouping"
IDS = [1, 5, 9, 100, 200, 33, 7]

# source container, its type, target container, the type that the weights have there, verdict
PAIRS = [
    (G, "int4-g128", A, "int4-g128", EXACT),
    (G, "int4-g128", C, "int4-g128", EXACT),
    (G, "int4-g128", "gguf", "Q4_0", REGROUPED),
    (G, "int4-g128", "onnx:ort", "int4-g128", EXACT),
    (G, "int4-g128", "hb", "int4-g128", EXACT),
    (G, "int4-g128-asym", G, "int4-g128-asym", EXACT),
    (G, "int4-g128-asym", A, "int4-g128-asym", EXACT),
    (G, "int4-g128-asym", C, "int4-g128-asym", EXACT),
    (G, "int4-g128-asym", "gguf", "Q5_0", REGROUPED),
    (G, "int4-g128-asym", "onnx:ort", "int4-g128-asym", EXACT),
    (G, "int3-g64", A, "int4-g64", EXACT),
    (G, "int3-g64", C, "int3-g64", EXACT),
    (G, "int3-g64", "gguf", "Q4_0", REGROUPED),
    (G, "int2-g32", A, "int4-g32", EXACT),
    (G, "int2-g32", "gguf", "Q4_0", EXACT),
    (G, "int8-g32", C, "int8-g32", EXACT),
    (G, "int8-g32", "gguf", "Q8_0", EXACT),
    (G, "int8-g32", "onnx:ort", "int8-g32", EXACT),
    (G, "int8", "gguf", "Q8_0", REGROUPED),
    (A, "int4-g64", G, "int4-g64", EXACT),
    (A, "int4-g64", "gguf", "Q4_0", REGROUPED),
    (A, "int4-g64-asym", G, "int4-g64-asym", EXACT),
    (A, "int4-g64-asym", C, "int4-g64-asym", EXACT),
    (A, "int4-g64-asym", "gguf", "Q5_0", REGROUPED),
    (A, "int4-g64-asym", "onnx:ort", "int4-g64-asym", EXACT),
    (C, "int4-g32", G, "int4-g32", EXACT),
    (C, "int4-g32-asym", A, "int4-g32-asym", EXACT),
    (C, "int4-g128-bf16", G, "int4-g128-bf16", EXACT),
    (C, "int4-g128-bf16", "gguf", "Q4_0", REGROUPED),
    (C, "int4", "gguf", "Q4_0", REGROUPED),
    (C, "int5-g32", G, "int8-g32", EXACT),
    (C, "int5-g32", "gguf", "Q5_0", EXACT),
    (C, "int8", "gguf", "Q8_0", REGROUPED),
    (G, "int4-g128", M, "int4-g128-bias", EXACT),
    (G, "int3-g64", M, "int3-g64-bias", EXACT),
    (G, "int8", M, "int8-g128-bias", REGROUPED),
    (A, "int4-g64-asym", M, "int4-g64-bias-f32", EXACT),
    (C, "int5-g32", M, "int5-g32-bias", EXACT),
    (M, "int4-g64-bias", "gguf", "Q4_1", REGROUPED),
    ("gguf", "Q4_0", M, "int4-g32-bias", EXACT),
    ("gguf", "Q4_1", M, "int4-g32-bias", EXACT),
    ("gguf", "Q8_0", M, "int8-g32-bias", EXACT),
    ("gguf", "Q4_0", G, "int4-g32", EXACT),
    ("gguf", "Q4_0", A, "int4-g32", EXACT),
    ("gguf", "Q4_0", C, "int4-g32", EXACT),
    ("gguf", "Q5_0", C, "int5-g32", EXACT),
    ("gguf", "Q5_0", G, "int8-g32", EXACT),
    ("gguf", "Q8_0", G, "int8-g32", EXACT),
    ("gguf", "Q8_0", C, "int8-g32", EXACT),
    ("gguf", "IQ4_NL", G, "int8-g32", EXACT),
    ("onnx:ort", "int4-g32", G, "int4-g32", EXACT),
    ("onnx:ort", "int4-g32-asym", A, "int4-g32-asym", EXACT),
    ("onnx:ort", "int4-g32-asym", C, "int4-g32-asym", EXACT),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


def made(folder: Path, to: str, type_name: str) -> Path:
    """Return a quantized decoder, made once for all pairs."""
    name = f"{to}-{type_name}".replace(":", "_")
    known = [path for path in (folder / name).glob("model.*") if to in ("gguf", "onnx:ort", "hb")]
    if known:
        return next(p for p in known if p.suffix in (".gguf", ".onnx", ".hb"))
    if (folder / name).exists():
        return folder / name
    return quantized(folder, to, type_name)


def target_of(folder: Path, to: str) -> Path:
    endings = {"gguf": "model.gguf", "onnx:ort": "model.onnx", "hb": "model.hb"}
    return folder / endings.get(to, "model")


def logits(model: Model) -> np.ndarray:
    return np.asarray(next(iter(outputs_of(model, IDS).values())))


@pytest.mark.parametrize(("source", "type_name", "to", "wanted", "verdict"), PAIRS)
def test_codes_are_carried(
    folder: Path,
    tmp_path: Path,
    source: str,
    type_name: str,
    to: str,
    wanted: str,
    verdict: str,
) -> None:
    origin, target = made(folder, source, type_name), target_of(tmp_path, to)
    report = pipeline.convert(origin, target, to=to)
    before, after = read(origin), read(target)
    query = {t.source_name: t for t in report.tensors}
    for key, tensor in before.by_key().items():
        if not tensor.encoding.is_quantized or key.role in (
            Role.OUTPUT_HEAD,
            Role.TOKEN_EMBEDDING,
        ):
            continue
        moved = after.by_key()[key]
        assert str(moved.encoding) == wanted
        assert query[tensor.name].verdict == verdict
        assert np.array_equal(
            np.sort(moved.float32(), axis=0), np.sort(tensor.float32(), axis=0)
        ), key
    assert np.array_equal(logits(after), logits(before)) or np.allclose(
        logits(after), logits(before), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(("source", "type_name"), [(G, "int4-g128-asym"), (A, "int4-g64-asym")])
def test_offsets_hold_zero_points_to_one_rounding(
    folder: Path, tmp_path: Path, source: str, type_name: str
) -> None:
    origin = made(folder, source, type_name)
    report = pipeline.quantize(
        origin, tmp_path / "m.gguf", to="gguf", type="Q4_1",
        overrides=[("*embed_tokens*", "float32"), ("lm_head*", "float32")],
    )  # fmt: skip
    verdicts = {t.verdict for t in report.tensors if t.encoding == "Q4_1"}
    assert verdicts == {"exact codes, rounded offsets"}
    before, after = read(origin).by_key(), read(tmp_path / "m.gguf").by_key()
    for key, tensor in before.items():
        if not tensor.encoding.is_quantized:
            continue
        scales = np.abs(tensor.read()["scales"].astype(np.float32)).max()
        found = np.sort(after[key].float32(), axis=0) - np.sort(tensor.float32(), axis=0)
        assert 0 < np.abs(found).max() < 0.0073 * scales, key


@pytest.mark.parametrize(
    ("source", "type_name", "to", "asked", "nearest"),
    [
        (G, "int4-g128-asym", "gguf", "Q4_0", "Q5_0"),
        (G, "int8-g32", "gguf", "Q5_0", "Q8_0"),
        (G, "int4-g128", C, "int4-g128-bf16", "int4-g128-asym"),
        ("gguf", "Q8_0", G, "int4-g32", "int8-g32"),
    ],
)
def test_what_would_round_again_is_refused(
    folder: Path, tmp_path: Path, source: str, type_name: str, to: str, asked: str, nearest: str
) -> None:
    origin = made(folder, source, type_name)
    with pytest.raises(UnsupportedError, match=r"without loss .*--requantize") as error:
        pipeline.quantize(origin, target_of(tmp_path, to), to=to, type=asked)
    assert nearest in error.value.supported
    assert not list(tmp_path.iterdir())


def test_offsets_of_blocks_are_no_zero_points(folder: Path, tmp_path: Path) -> None:
    origin = made(folder, "gguf", "Q4_1")
    with pytest.raises(UnsupportedError, match=r"Q4_1 in hf:gptq without loss"):
        pipeline.convert(origin, tmp_path / "out", to=G)


@pytest.mark.parametrize("type_name", ["int4-g64", "int4-g64-asym", "int3-g32", "int8-g128"])
def test_mlx_gives_back_what_it_was_given(folder: Path, tmp_path: Path, type_name: str) -> None:
    origin = made(folder, G, type_name)
    pipeline.convert(origin, tmp_path / "mlx", to=M)
    pipeline.convert(tmp_path / "mlx", tmp_path / "again", to=G)
    before, after = arrays_of(origin), arrays_of(tmp_path / "again")
    for name, array in before.items():
        if name.endswith((".qweight", ".scales", ".g_idx")):
            assert array.tobytes() == after[name].astype(array.dtype).tobytes(), name
    values = [read(path).by_key() for path in (origin, tmp_path / "again")]
    for key, tensor in values[0].items():
        assert np.array_equal(tensor.decode(), values[1][key].decode()), key


def test_a_decoder_runs_alike_from_each_of_them(folder: Path) -> None:
    found = [logits(read(made(folder, to, "int4-g64-asym"))) for to in (G, A, C)]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_act_order_goes_where_a_group_index_can(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 16, (64, 64)).astype(np.uint8)
    group = np.random.default_rng(1).permutation(np.arange(64) // 16).astype(np.int32)
    scales = np.full((64, 4), 0.5, np.float16)
    arrays = gptq_arrays(codes, np.full((64, 4), 8), scales, 4, 1) | {"g_idx": group}
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 16}}
    write_folder(tmp_path / "from", {f"proj.{n}": a for n, a in arrays.items()}, config)
    pipeline.convert(tmp_path / "from", tmp_path / "again", to=G)
    stored = arrays_of(tmp_path / "again")
    assert stored["proj.g_idx"].tobytes() == group.tobytes()
    assert stored["proj.qweight"].tobytes() == arrays["qweight"].tobytes()
    assert settings_of(tmp_path / "again")["desc_act"] is True
    for to in (A, C):
        with pytest.raises(UnsupportedError, match="hf:gptq, onnx:ort and hb keep the order"):
            pipeline.convert(tmp_path / "from", tmp_path / "out", to=to)


def test_qwen2_with_experts(tmp_path: Path) -> None:
    origin = quantized(tmp_path, G, "int4-g32-asym", decoder("qwen2_moe"))
    for to in (A, C):
        pipeline.convert(origin, tmp_path / to.replace(":", "_"), to=to)
        assert np.array_equal(logits(read(tmp_path / to.replace(":", "_"))), logits(read(origin)))
