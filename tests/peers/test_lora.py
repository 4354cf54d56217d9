"""LoRA adapters beside PEFT, llama.cpp's script and llama-export-lora."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters import read
from halfbyte.converters.gguf.container import read_container
from halfbyte.pipeline import convert
from support.adapter_folders import (
    ATTENTION,
    FEED_FORWARD,
    low_rank,
    projections,
    write_adapter_folder,
)
from support.gguf_digest import said
from support.llama_cpp_scripts import adapter_conversion, require_source_tree, run
from support.script_cases import CASES
from support.script_models import exact_values, write_folder_case

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
ALL = {**ATTENTION, **FEED_FORWARD}
IDS = [[1, 5, 9, 100, 3, 77, 64, 2]]


def base_folder(name: str, parent: Path) -> Path:
    return write_folder_case(CASES[name], parent)


def embedding_pair(rank: int = 4) -> dict[str, Any]:
    stem = "base_model.model.model.embed_tokens"
    return {
        f"{stem}.lora_embedding_A": exact_values((rank, 288), 500, 0.5),
        f"{stem}.lora_embedding_B": exact_values((64, rank), 501, 0.5),
    }


def magnitudes(shapes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    return {
        f"base_model.model.{module}.lora_magnitude_vector": 1
        + exact_values((rows,), 700 + number, 0.25)
        for number, (module, (rows, _)) in enumerate(shapes.items())
    }


def logits(model: Any) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(torch.tensor(IDS)).logits.numpy()
    return found


def plain_model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def manual_merge(model: Any, adapters: list[tuple[Path, float]]) -> Any:
    """Add scale * B A to the weights of a transformers model, in float64."""
    from safetensors.numpy import load_file

    for folder, factor in adapters:
        settings = json.loads((folder / "adapter_config.json").read_text())
        arrays = load_file(folder / "adapter_model.safetensors")
        for name in [n for n in arrays if n.endswith("lora_A.weight")]:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            a, b = arrays[name], arrays[name.replace("lora_A", "lora_B")]
            scale = factor * settings["lora_alpha"] / len(a)
            delta = scale * b.astype(np.float64) @ a.astype(np.float64)
            weight = model.get_submodule(module).weight
            if type(model.get_submodule(module)).__name__ == "Conv1D":
                delta = delta.T
            weight.data += torch.from_numpy(delta).to(weight.dtype)
    return model


def check_logits(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


GPT2_MODULES = {
    "attn.c_attn": (192, 64), "attn.c_proj": (64, 64), "mlp.c_fc": (256, 64),
    "mlp.c_proj": (64, 256),
}  # fmt: skip
QWEN3 = {**ALL, "self_attn.q_proj": (64, 64)}
MERGED = {
    "llama-linear": projections(2, ALL),
    "qwen2-untied-yarn": projections(2, ALL),
    "qwen3-plain": projections(2, QWEN3),
    "mistral-v03": projections(2, ALL),
    "gpt2-untied": projections(2, GPT2_MODULES, "transformer.h.{}."),
}


@pytest.mark.parametrize("through_gguf", [False, True])
@pytest.mark.parametrize("name", MERGED)
def test_merged_logits_are_those_of_a_manual_merge(
    tmp_path: Path, name: str, through_gguf: bool
) -> None:
    base = base_folder(name, tmp_path)
    first = write_adapter_folder(tmp_path / "one", low_rank(MERGED[name]))
    second = write_adapter_folder(tmp_path / "two", low_rank(MERGED[name], 2, seed=1), rank=2)
    expected = logits(manual_merge(plain_model(base), [(first, 1.0), (second, -0.5)]))
    source, adapters = base, [(first, 1.0), (second, -0.5)]
    if through_gguf:
        source = tmp_path / "base.gguf"
        convert(base, source)
        for path, _ in adapters:
            convert(path, path.with_suffix(".gguf"), base=base)
        adapters = [(path.with_suffix(".gguf"), scale) for path, scale in adapters]
    report = convert(source, tmp_path / "merged", lora=adapters, type="float32")
    assert {t.verdict for t in report.tensors if "adapter merged" in t.reason} == {
        "exact to rounding"
    }
    check_logits(logits(plain_model(tmp_path / "merged")), expected)


PEFT_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (low_rank(projections(2, ALL)), {}),
    "rslora": (low_rank(projections(2, ALL)), {"use_rslora": True}),
    "alpha-pattern": (
        low_rank(projections(2, ATTENTION)),
        {"alpha_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 16, r"0\.self_attn.k_.*": 1}},
    ),
    "rank-pattern": (
        {**low_rank(projections(2, ATTENTION)), **low_rank(projections(2, FEED_FORWARD), 2)},
        {"rank_pattern": {"mlp.gate_proj": 2, ".*up_proj": 2, "down_proj": 2}},
    ),
    "embedding": ({**low_rank(projections(2, ATTENTION)), **embedding_pair()}, {}),
    "head": (
        low_rank({**projections(2, ATTENTION), "lm_head": (288, 64)}, dtype="bfloat16"), {}
    ),
    "dora": (
        {**low_rank(projections(2, ALL)), **magnitudes(projections(2, ALL))}, {"use_dora": True}
    ),
    "modules-to-save": (
        {**low_rank(projections(2, ATTENTION)),
         "base_model.model.lm_head.weight": exact_values((288, 64), 900, 0.5)},
        {"modules_to_save": ["lm_head"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PEFT_CASES)
def test_merged_logits_are_those_of_peft(tmp_path: Path, name: str) -> None:
    peft: Any = pytest.importorskip("peft")
    arrays, settings = PEFT_CASES[name]
    base = base_folder("llama-linear", tmp_path)
    adapter = write_adapter_folder(tmp_path / "adapter", arrays, str(base), **settings)
    loaded = peft.PeftModel.from_pretrained(plain_model(base), adapter).eval()
    convert(base, tmp_path / "merged", lora=[(adapter, 1.0)])
    expected = logits(loaded)
    assert np.abs(expected - logits(plain_model(base))).max() > 0.01 * np.abs(expected).max()
    check_logits(logits(plain_model(tmp_path / "merged")), expected)


def compare_adapters(ours: Path, theirs: Path) -> None:
    found, expected = read_container(ours), read_container(theirs)
    known = {info.name: info for info in found.tensors}
    assert known.keys() == {info.name for info in expected.tensors}
    for info in expected.tensors:
        assert (info.shape, info.kind) == (known[info.name].shape, known[info.name].kind)
        np.testing.assert_array_equal(
            found.tensor(known[info.name]).read()["data"], expected.tensor(info).read()["data"]
        )
    assert list(found.metadata) == list(expected.metadata)
    for key, value in expected.metadata.items():
        assert said(key, found.metadata[key]) == said(key, value)


SCRIPT_CARD = {"README.md": b"---\nbase_model: org/Base-7B\ntags: [lora]\nlicense: mit\n---\n"}
SCRIPT_CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama-lora-8B": ("llama-linear", low_rank(projections(2, ALL)), {}),
    "half": ("llama-head-dim", low_rank(
        projections(2, {"self_attn.q_proj": (128, 64), "self_attn.k_proj": (128, 64)}),
        dtype="bfloat16"), {"lora_alpha": 3.5}),
    "rank-8": ("qwen2-untied-yarn", low_rank(projections(2, ALL), 32, "float16"), {"r": 32}),
    "embedding": ("mistral-v03", {
        **low_rank(projections(2, ATTENTION)),
        "base_model.model.model.embed_tokens.lora_embedding_A": exact_values((4, 344), 1, 0.5),
        "base_model.model.model.embed_tokens.lora_embedding_B": exact_values((64, 4), 2, 0.5),
    }, {}),
    "some-layers": ("qwen3-plain", low_rank({"model.layers.1.mlp.up_proj": (96, 64)}), {
        "alora_invocation_tokens": [5, 6, 7]}),
}  # fmt: skip


def test_adapter_files_are_those_of_the_script(tmp_path: Path) -> None:
    require_source_tree()
    jobs = []
    for name, (base_name, arrays, settings) in SCRIPT_CASES.items():
        base = base_folder(base_name, tmp_path)
        folder = write_adapter_folder(tmp_path / name, arrays, str(base), **settings)
        (folder / "README.md").write_bytes(SCRIPT_CARD["README.md"])
        for outtype in ("f32", "f16", "bf16", "q8_0"):
            theirs = tmp_path / f"{name}-{outtype}.gguf"
            jobs.append(adapter_conversion(folder, base, outtype, theirs))
            convert(folder, tmp_path / f"{name}-{outtype}-ours.gguf", type=outtype.upper())
    run(jobs)
    for name in SCRIPT_CASES:
        for outtype in ("f32", "f16", "bf16", "q8_0"):
            stem = f"{name}-{outtype}"
            compare_adapters(tmp_path / f"{stem}-ours.gguf", tmp_path / f"{stem}.gguf")


def export_tool() -> str:
    found = os.environ.get("HALFBYTE_LLAMA_EXPORT_LORA") or shutil.which("llama-export-lora")
    if not found:
        pytest.skip("no llama-export-lora: HALFBYTE_LLAMA_EXPORT_LORA names none")
    return found


def test_merged_tensors_are_those_of_llama_export_lora(tmp_path: Path) -> None:
    tool = export_tool()
    base = base_folder("llama-linear", tmp_path)
    arrays = low_rank(projections(2, ALL))
    adapter = write_adapter_folder(tmp_path / "adapter", arrays, str(base))
    convert(base, tmp_path / "base.gguf", type="F32")
    convert(adapter, tmp_path / "adapter.gguf")
    command = [tool, "-m", str(tmp_path / "base.gguf"), "-o", str(tmp_path / "theirs.gguf")]
    command += ["--lora-scaled", f"{tmp_path / 'adapter.gguf'}:0.75"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pair = [(tmp_path / "adapter.gguf", 0.75)]
    convert(tmp_path / "base.gguf", tmp_path / "ours.gguf", lora=pair, type="F16")
    theirs = read(tmp_path / "theirs.gguf").weights
    ours = read(tmp_path / "ours.gguf").weights
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        if len(tensor.shape) < 2:
            continue
        expected, found = tensor.float32(), ours[name].float32()
        # both round to float16; it sums in another order, so a value may fall on the other side
        np.testing.assert_allclose(found, expected, rtol=2**-10, atol=1e-6)


def test_llama_cpp_loads_adapters(tmp_path: Path) -> None:
    llama_cpp: Any = pytest.importorskip("llama_cpp")
    base = base_folder("llama-linear", tmp_path)
    arrays = {**low_rank(projections(2, ALL)), **embedding_pair()}
    settings = {"use_rslora": True, "alpha_pattern": {"q_proj": 2}}
    adapter = write_adapter_folder(tmp_path / "adapter", arrays, str(base), **settings)
    convert(base, tmp_path / "base.gguf", type="F32")
    convert(adapter, tmp_path / "adapter.gguf")
    convert(base, tmp_path / "merged.gguf", lora=[(adapter, 1.0)], type="F32")

    def scores(path: Path, **options: Any) -> np.ndarray[Any, Any]:
        model = llama_cpp.Llama(
            str(path), n_ctx=64, n_threads=2, logits_all=True, verbose=False,
            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, **options,
        )  # fmt: skip
        model.eval(IDS[0])
        found = np.array(model.scores[: len(IDS[0])])
        model.close()
        return found

    beside = scores(tmp_path / "base.gguf", lora_path=str(tmp_path / "adapter.gguf"))
    check_logits(scores(tmp_path / "merged.gguf"), beside)
