"""GGUF files between us, gguf-py and llama.cpp.

HALFBYTE_LLAMA_CPP_SOURCE may name a llama.cpp source tree: its conversion script is then compared
with ours on the model that HALFBYTE_DECODER names.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters import read as read_any
from halfbyte.converters.gguf.container import read_container
from halfbyte.converters.gguf.ggml_types import FILE_TYPES, GGML_TYPES, ValueType
from halfbyte.converters.gguf.metadata_value import MetadataValue, plain, typed
from halfbyte.converters.gguf.output import guess_file_type
from halfbyte.converters.gguf.writer import write_gguf
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.runtime.session import Session
from support.gguf_models import read, write
from support.random_models import random_model
from support.real_models import require_model

gguf: Any = pytest.importorskip("gguf")
pytestmark = pytest.mark.peer

QUANTIZED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
IDS = [1, 5, 9, 100, 3, 77, 64, 2]


def reader_value(field: Any) -> Any:
    return field.contents()


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", *QUANTIZED])
def test_gguf_py_reads_our_files(tmp_path: Path, type_name: str) -> None:
    path = tmp_path / "m.gguf"
    model = random_model("llama", hidden_size=64, intermediate_size=96)
    write(model, path, type_name)
    reader = gguf.GGUFReader(path)
    ours = read(path)
    assert [tensor.name for tensor in reader.tensors] == list(ours.weights)
    for theirs in reader.tensors:
        tensor = ours.weights[theirs.name]
        assert tuple(reversed(theirs.shape.tolist())) == tensor.shape
        if theirs.name.endswith("attn_q.weight"):
            assert theirs.tensor_type.name == type_name
        values = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
        np.testing.assert_array_equal(values.reshape(-1), tensor.float32().reshape(-1))
    for key, value in plain(ours.metadata["gguf"]).items():
        found = reader_value(reader.fields[key])
        assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value


def their_file(path: Path, endian: Any, blocks: bool = True) -> dict[str, np.ndarray[Any, Any]]:
    """Write a file with gguf-py; return the arrays in it."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "f32": random.standard_normal((3, 5)).astype(np.float32),
        "f16": random.standard_normal((2, 3, 4)).astype(np.float16),
        "f64": random.standard_normal(3),
        "i32": np.arange(6, dtype=np.int32).reshape(2, 3),
        "i8": np.arange(4, dtype=np.int8),
    }
    writer = gguf.GGUFWriter(path, "unheard", endianess=endian)
    writer.add_uint8("k.u8", 200)
    writer.add_int64("k.i64", -5)
    writer.add_float64("k.f64", 0.1)
    writer.add_bool("k.bool", True)
    writer.add_array("k.strings", ["a", "bé", "c"])
    writer.add_array("k.ints", [1, -2, 3])
    writer.add_array("k.floats", [0.5, 1.5])
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    if blocks:
        for name in QUANTIZED:
            rows = random.standard_normal((3, 64)).astype(np.float32)
            kind = gguf.GGMLQuantizationType[name]
            packed = gguf.quants.quantize(rows, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            arrays[name] = gguf.quants.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays


def check_their_file(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    container = read_container(path)
    assert container.problems == ()
    found = {info.name: container.tensor(info) for info in container.tensors}
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name].numpy(), array)
    assert container.metadata["k.u8"] == MetadataValue(200, ValueType.UINT8)
    assert container.metadata["k.i64"] == MetadataValue(-5, ValueType.INT64)
    assert container.metadata["k.f64"] == MetadataValue(0.1, ValueType.FLOAT64)
    assert container.metadata["k.bool"] == typed(True)
    assert container.metadata["k.strings"] == typed(["a", "bé", "c"])
    assert container.metadata["k.ints"] == typed([1, -2, 3])
    assert container.metadata["k.floats"] == typed([0.5, 1.5])


def test_we_read_files_of_gguf_py(tmp_path: Path) -> None:
    arrays = their_file(tmp_path / "m.gguf", gguf.GGUFEndian.LITTLE)
    check_their_file(tmp_path / "m.gguf", arrays)


def test_we_write_the_same_bytes_as_gguf_py(tmp_path: Path) -> None:
    arrays = their_file(tmp_path / "theirs.gguf", gguf.GGUFEndian.LITTLE, blocks=False)
    metadata = read_container(tmp_path / "theirs.gguf").metadata
    tensors = [tensor_from_array(name, array) for name, array in arrays.items()]
    write_gguf(tmp_path / "ours.gguf", metadata, tensors)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_we_read_big_endian_files_of_gguf_py(tmp_path: Path) -> None:
    arrays = their_file(tmp_path / "m.gguf", gguf.GGUFEndian.BIG, blocks=False)
    assert read_container(tmp_path / "m.gguf").big_endian
    check_their_file(tmp_path / "m.gguf", arrays)


@pytest.mark.parametrize("type_name", ["F32", "F16", "Q4_0", "Q8_0"])
def test_big_endian_conversion_of_gguf_py(
    tmp_path: Path, type_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tqdm")
    path, swapped = tmp_path / "m.gguf", tmp_path / "swapped.gguf"
    write(random_model("llama", hidden_size=64, intermediate_size=96), path, type_name)
    swapped.write_bytes(path.read_bytes())
    monkeypatch.setattr("builtins.input", lambda prompt: "YES")
    monkeypatch.setattr(sys, "argv", ["gguf_convert_endian", str(swapped), "big"])
    runpy.run_module("gguf.scripts.gguf_convert_endian", run_name="__main__")
    assert read_container(swapped).big_endian
    ours, back = read(path), read(swapped)
    assert back.config == ours.config
    for name, tensor in ours.weights.items():
        np.testing.assert_array_equal(back.weights[name].read()["data"], tensor.read()["data"])
    write(back, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


def test_our_table_of_types_is_theirs() -> None:
    for kind in gguf.GGMLQuantizationType:
        ours = GGML_TYPES[kind.value]
        assert ours.name == kind.name
        # gguf-py counts Q8_1 with float32 scales; ggml itself stores float16
        if kind.name != "Q8_1":
            assert (ours.block, ours.block_bytes) == gguf.GGML_QUANT_SIZES[kind]
    theirs = {kind.name.removeprefix("MOSTLY_"): kind.value for kind in gguf.LlamaFileType}
    theirs |= {"F32": 0, "MXFP4": theirs["MXFP4_MOE"]}
    theirs |= {f"Q{bits}_K": theirs[f"Q{bits}_K_M"] for bits in (3, 4, 5)}
    for name, number in FILE_TYPES.items():
        assert theirs.get(name, number) == number


def llama_cpp_logits(path: Path, ids: list[int]) -> np.ndarray[Any, Any]:
    llama_cpp: Any = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(
        str(path),
        n_ctx=64,
        n_threads=2,
        logits_all=True,
        verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
    )
    model.eval(ids)
    found = np.array(model.scores[: len(ids)])
    model.close()
    return found


def our_logits(model: Model, ids: list[int]) -> np.ndarray[Any, Any]:
    session = Session(model, "reference")
    return session.run({"input_ids": np.array([ids], np.int64)})["logits"][0]


def scaling(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": kind, **settings}}


def longrope(original: int) -> dict[str, Any]:
    return scaling(
        "longrope",
        original_max_position_embeddings=original,
        short_factor=[1.0 + 0.25 * i for i in range(8)],
        long_factor=[2.0] * 8,
        attention_factor=1.25,
    )


LOADED = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 32}),
    ("llama", scaling("linear", factor=2.5)),
    ("llama", scaling("yarn", factor=4.0, original_max_position_embeddings=16)),
    (
        "llama",
        scaling("yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=1.5),
    ),
    (
        "llama",
        scaling(
            "llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
    # llama.cpp rounds its context up to 256 and picks the factors by that, not by the text
    ("llama", {"max_position_embeddings": 512, **longrope(256)}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {}),
    ("qwen2", scaling("yarn", factor=2.0, original_max_position_embeddings=32)),
    ("qwen3", {}),
    ("gpt2", {}),
]


@pytest.mark.parametrize(("model_type", "settings"), LOADED, ids=lambda v: str(v)[:60])
def test_llama_cpp_computes_the_same_logits(
    tmp_path: Path, model_type: str, settings: dict[str, Any]
) -> None:
    model = random_model(model_type, **settings)
    path = tmp_path / "m.gguf"
    write(model, path)
    theirs = llama_cpp_logits(path, IDS)
    bound = 1e-4 * np.abs(theirs).max()
    if model_type == "gpt2":
        bound *= 20  # llama.cpp takes GELU from a table of float16
    for source in (model, read(path)):
        np.testing.assert_allclose(our_logits(source, IDS), theirs, rtol=0, atol=bound)


@pytest.mark.parametrize("type_name", ["F16", "BF16", *QUANTIZED])
def test_llama_cpp_loads_every_type(tmp_path: Path, type_name: str) -> None:
    path = tmp_path / "m.gguf"
    write(random_model("llama", hidden_size=64, intermediate_size=96), path, type_name)
    theirs = llama_cpp_logits(path, IDS)
    ours = our_logits(read(path), IDS)
    # llama.cpp rounds activations to 8 bits (or to float16) before it multiplies
    assert np.abs(ours - theirs).max() < 0.1 * np.abs(theirs).max()


@pytest.mark.parametrize("type_name", ["F32", "Q8_0"])
def test_llama_cpp_loads_the_decoder(tmp_path: Path, type_name: str) -> None:
    source = read_any(require_model("decoder"))
    path = tmp_path / "m.gguf"
    write(source, path, type_name)
    ids = [11, 40, 300, 2000, 7, 45, 901, 12]
    theirs, ours = llama_cpp_logits(path, ids), our_logits(read(path), ids)
    np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))
    if type_name == "F32":
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_smollm2_is_copied_byte_for_byte(tmp_path: Path) -> None:
    source = require_model("smollm2")
    model = read(source)
    assert model.warnings == ()
    write(model, tmp_path / "copy.gguf", threads=2)
    assert (tmp_path / "copy.gguf").read_bytes() == source.read_bytes()


def test_llama_cpp_embeds_with_minilm(tmp_path: Path) -> None:
    llama_cpp: Any = pytest.importorskip("llama_cpp")
    source = read_any(require_model("minilm"))
    path = tmp_path / "m.gguf"
    write(source, path)
    assert read(path).config["pooling_type"] == "mean"
    ids = [101, 7592, 2088, 102]
    peer = llama_cpp.Llama(
        str(path), n_ctx=64, embedding=True, verbose=False, pooling_type=0, n_threads=2
    )
    theirs = np.array(peer.embed(peer.detokenize(ids[1:-1]).decode(), normalize=False))
    peer.close()
    inputs = {name: np.array([ids], np.int64) for name in ("input_ids",)}
    inputs["attention_mask"] = np.ones((1, 4), np.int64)
    inputs["token_type_ids"] = np.zeros((1, 4), np.int64)
    ours = Session(read(path), "reference").run(inputs)["last_hidden_state"][0]
    assert theirs.shape == ours.shape
    cosine = (ours * theirs).sum() / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert cosine > 0.9999  # llama.cpp takes GELU's tanh form


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0"])
def test_conversion_script_writes_the_same(tmp_path: Path, type_name: str) -> None:
    tree = os.environ.get("HALFBYTE_LLAMA_CPP_SOURCE", "")
    script = Path(tree) / "convert_hf_to_gguf.py"
    if not tree or not script.is_file():
        pytest.skip("HALFBYTE_LLAMA_CPP_SOURCE names no llama.cpp source tree")
    source = require_model("decoder")
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    # the script knows no hash for this tokenizer: it is told what ours picks
    start = (
        "import runpy, sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/gguf-py'];"
        "from conversion import base;"
        "base.TextModel.get_vocab_base_pre = lambda self, tokenizer: 'gpt-2';"
        "sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", start, tree, str(script), str(source)]
    options = ["--outtype", type_name.lower(), "--outfile", str(theirs)]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=300)
    write(read_any(source), ours, type_name)
    expected, found = read_container(theirs), read_container(ours)
    known = {info.name: info for info in found.tensors}
    assert known.keys() == {info.name for info in expected.tensors}
    for info in expected.tensors:
        assert (info.shape, info.kind) == (known[info.name].shape, known[info.name].kind)
        np.testing.assert_array_equal(
            found.tensor(known[info.name]).read()["data"], expected.tensor(info).read()["data"]
        )
    ours_only = {"halfbyte.config"}
    assert [key for key in found.metadata if key not in ours_only] == list(expected.metadata)
    differing = {k for k, v in expected.metadata.items() if found.metadata[k] != v}
    assert differing <= {"general.name"}


def test_file_type_agrees_with_the_dominant_type(tmp_path: Path) -> None:
    model = random_model("gpt2", hidden_size=64)
    write(model, tmp_path / "m.gguf", "Q8_0")
    tensors = list(read(tmp_path / "m.gguf").weights.values())
    assert guess_file_type(tensors) == gguf.LlamaFileType.MOSTLY_Q8_0
    matrices = [t for t in tensors if t.role is Role.ATTENTION_QKV and t.kind == "weight"]
    assert {t.encoding for t in matrices} == {encoding_from_name("Q8_0")}
