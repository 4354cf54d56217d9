"""Low-rank adapters: sums, types, verdicts, both forms, the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from halfbyte.adapters import parse_adapters
from halfbyte.converters import read
from halfbyte.converters.gguf.container import read_container
from halfbyte.converters.lora import product
from halfbyte.errors import HalfbyteError
from halfbyte.pipeline import convert, quantize
from support.adapter_folders import (
    ATTENTION,
    FEED_FORWARD,
    low_rank,
    projections,
    write_adapter_folder,
)
from support.script_cases import CASES
from support.script_models import exact_values, write_folder_case

SHAPES = projections(2, {**ATTENTION, **FEED_FORWARD})


def base_folder(parent: Path, dtype: str = "float32", name: str = "llama-linear") -> Path:
    return write_folder_case(replace(CASES[name], dtype=dtype), parent)


def summed(base: Path, name: str, arrays: dict[str, Any], scale: float) -> np.ndarray[Any, Any]:
    """Return W + scale * B A in float64."""
    weight = load_file(base / "model.safetensors")[f"{name}.weight"].astype(np.float64)
    a = arrays[f"base_model.model.{name}.lora_A.weight"].astype(np.float64)
    b = arrays[f"base_model.model.{name}.lora_B.weight"].astype(np.float64)
    return np.asarray(weight + scale * b @ a)


def test_product_sums_in_the_order_of_the_rank() -> None:
    b, a = exact_values((200, 5), 1, 1.0), exact_values((5, 3000), 2, 1.0)
    expected = np.zeros((200, 3000), np.float32)
    for k in range(5):
        expected += b[:, k : k + 1] * a[k]
    np.testing.assert_array_equal(product(b, a, np.float32(0.3)), expected * np.float32(0.3))
    np.testing.assert_array_equal(
        product(b[7:9], a, np.float32(0.3)), product(b, a, np.float32(0.3))[7:9]
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_keep_the_type_of_the_base(tmp_path: Path, dtype: str) -> None:
    base, arrays = base_folder(tmp_path, dtype), low_rank(SHAPES)
    adapter = write_adapter_folder(tmp_path / "adapter", arrays)
    report = convert(base, tmp_path / "out", lora=[(adapter, 0.5)])
    found = load_file(tmp_path / "out/model.safetensors")
    verdict = "exact to rounding" if dtype == "float32" else "rounded"
    by_source = {tensor.source_name: tensor for tensor in report.tensors}
    for module in SHAPES:
        array = found[f"{module}.weight"]
        assert array.dtype.name == dtype
        expected = summed(base, module, arrays, 0.5 * 8 / 4)
        step = {"float32": 2**-22, "float16": 2**-10, "bfloat16": 2**-7}[dtype]
        np.testing.assert_allclose(array.astype(np.float64), expected, rtol=step, atol=step)
        assert by_source[f"{module}.weight"].verdict == verdict
        assert by_source[f"{module}.weight"].reason.startswith("adapter merged")
    untouched = by_source["model.embed_tokens.weight"]
    assert (untouched.verdict, untouched.reason) == ("exact", "kept")


def test_quantized_output_is_made_of_the_float32_sum(tmp_path: Path) -> None:
    base, arrays = base_folder(tmp_path, "bfloat16"), low_rank(SHAPES)
    adapter = write_adapter_folder(tmp_path / "adapter", arrays)
    report = quantize(base, tmp_path / "q.gguf", type="Q8_0", lora=[(adapter, 1.0)])
    convert(base, tmp_path / "merged", lora=[(adapter, 1.0)], type="float32")
    quantize(tmp_path / "merged", tmp_path / "again.gguf", type="Q8_0")
    once, twice = read(tmp_path / "q.gguf"), read(tmp_path / "again.gguf")
    for name, tensor in once.weights.items():
        np.testing.assert_array_equal(
            tensor.read()["data"], twice.weights[name].read()["data"], err_msg=name
        )
    assert {t.verdict for t in report.tensors if "attn" in t.name and "norm" not in t.name} == {
        "quantized"
    }


def test_a_quantized_base_needs_a_type(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    adapter = write_adapter_folder(tmp_path / "adapter", low_rank(SHAPES))
    quantize(base, tmp_path / "base.gguf", type="Q8_0")
    with pytest.raises(HalfbyteError, match="is Q8_0: merged values need a type"):
        convert(tmp_path / "base.gguf", tmp_path / "out.gguf", lora=[(adapter, 1.0)])
    report = convert(
        tmp_path / "base.gguf", tmp_path / "out.gguf", lora=[(adapter, 1.0)], type="F16",
        requantize=True,
    )  # fmt: skip
    changed = next(t for t in report.tensors if t.name == "blk.1.ffn_up.weight")
    assert (changed.encoding, changed.verdict) == ("float16", "rounded")


def test_adapters_add_up_and_their_order_does_not_matter_much(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    first = write_adapter_folder(tmp_path / "one", low_rank(SHAPES))
    second = write_adapter_folder(tmp_path / "two", low_rank(SHAPES, 2, seed=3), rank=2)
    convert(base, tmp_path / "a", lora=[(first, 1.0), (second, 2.0)])
    convert(base, tmp_path / "b", lora=[(second, 2.0), (first, 1.0)])
    left, right = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bytes_whatever_the_threads(tmp_path: Path, threads: int) -> None:
    base = base_folder(tmp_path)
    adapter = write_adapter_folder(tmp_path / "adapter", low_rank(SHAPES))
    for name, count in (("one", 1), ("other", threads)):
        convert(base, tmp_path / f"{name}.gguf", lora=[(adapter, 1.0)], threads=count)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_overflow_of_float16_is_an_error(tmp_path: Path) -> None:
    base = base_folder(tmp_path, "float16")
    arrays = {name: array * 600 for name, array in low_rank(SHAPES).items()}
    adapter = write_adapter_folder(tmp_path / "adapter", arrays)
    with pytest.raises(HalfbyteError, match="give --type bfloat16 or float32"):
        convert(base, tmp_path / "out", lora=[(adapter, 1.0)])
    assert not (tmp_path / "out").exists()


def test_pairs_of_both_forms_are_the_same(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    stem = "base_model.model.model.embed_tokens.lora_embedding_"
    arrays = {**low_rank(SHAPES), stem + "A": exact_values((4, 288), 50, 0.5)}
    arrays[stem + "B"] = exact_values((64, 4), 51, 0.5)
    adapter = write_adapter_folder(
        tmp_path / "adapter", arrays, str(base), use_rslora=True, alpha_pattern={"k_proj": 3}
    )
    report = convert(adapter, tmp_path / "adapter.gguf")
    assert {t.encoding for t in report.tensors} == {"float32"}
    pairs = read_container(tmp_path / "adapter.gguf").metadata
    assert pairs["general.type"].value == "adapter"
    assert pairs["adapter.lora.alpha"].value == 16.0  # 8 * sqrt(4)
    convert(base, tmp_path / "a", lora=[(adapter, 1.0)])
    convert(base, tmp_path / "b", lora=[(tmp_path / "adapter.gguf", 1.0)])
    left, right = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-6, atol=1e-6)


def test_whole_weights_take_the_place_of_the_base_s(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    arrays = low_rank(SHAPES)
    arrays["base_model.model.lm_head.modules_to_save.default.weight"] = np.ones(
        (288, 64), np.float32
    )
    arrays["base_model.model.model.norm.weight"] = np.full(64, 2, np.float32)
    adapter = write_adapter_folder(tmp_path / "adapter", arrays, str(base))
    convert(base, tmp_path / "out", lora=[(adapter, 1.0)])
    found = load_file(tmp_path / "out/model.safetensors")
    assert (found["lm_head.weight"] == 1).all()
    assert (found["model.norm.weight"] == 2).all()
    with pytest.raises(HalfbyteError, match="a scale of 0.5 for an adapter that replaces"):
        convert(base, tmp_path / "half", lora=[(adapter, 0.5)])
    with pytest.raises(HalfbyteError, match="GGUF adapters hold pairs only"):
        convert(adapter, tmp_path / "adapter.gguf")


def test_a_tied_base_takes_no_adapter_of_its_ends(tmp_path: Path) -> None:
    base = base_folder(tmp_path, name="llama-vocabulary-49152")
    arrays = low_rank({"lm_head": (49152, 32)})
    adapter = write_adapter_folder(tmp_path / "adapter", arrays)
    with pytest.raises(HalfbyteError, match="tie_word_embeddings false"):
        convert(base, tmp_path / "out", lora=[(adapter, 1.0)])
    with pytest.raises(HalfbyteError, match="llama.cpp finds no such weight"):
        convert(adapter, tmp_path / "a.gguf", base=base)


def test_entries_of_the_command_line() -> None:
    assert parse_adapters(["a", "b=0.5", "c=d", "e=f=2", "=1"]) == [
        ("a", 1.0), ("b", 0.5), ("c=d", 1.0), ("e=f", 2.0), ("", 1.0),
    ]  # fmt: skip
    with pytest.raises(HalfbyteError, match="finite"):
        parse_adapters(["a=nan"])
