"""The type of every tensor in a mix equals what llama.cpp's quantizer chooses, fallbacks too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from halfbyte.converters.gguf.profile import GgufProfile
from halfbyte.ir.model import Model
from halfbyte.quant.mixes import MIXES
from halfbyte.quant.plan import make_plan
from halfbyte.quant.type_choice import TypeOptions
from support.llama_quantize import chosen_types
from support.mix_models import EXPERTS, FUSED, MixModel

pytestmark = pytest.mark.peer
ONES = {"blk.0.attn_q.weight": np.ones(256, np.float32)}
NO_FALLBACK = ("Q1_0",)  # llama-quantize gives up where its blocks do not divide the rows

MODELS = {
    "llama": MixModel(),
    "llama, tied": MixModel(tied=True),
    "rows of 288": MixModel(columns=288),
    "rows of 96, tied": MixModel(columns=96, tied=True),
    "rows of 40": MixModel(columns=40),
    "rows of 128": MixModel(columns=128),
    "one layer": MixModel(layers=1, key_heads=2),
    "7 layers, tied": MixModel(layers=7, key_heads=2, tied=True),
    "32 layers, 2 groups": MixModel(layers=32, key_heads=4),
    "80 layers, grouped": MixModel(layers=80, key_heads=4),
    "80 layers, all heads": MixModel(layers=80),
    "80 layers of qwen2": MixModel("qwen2", layers=80, key_heads=8),
    "2 experts": MixModel(layers=16, experts=2, weights=EXPERTS),
    "4 experts": MixModel(layers=9, experts=4, weights=EXPERTS),
    "8 experts": MixModel(layers=16, key_heads=2, experts=8, weights=EXPERTS),
    "16 experts": MixModel(layers=5, key_heads=2, experts=16, weights=EXPERTS),
    "gpt2": MixModel("gpt2", layers=12, tied=True, weights=FUSED),
    "bert": MixModel("bert", layers=12, tied=True),
    "falcon": MixModel("falcon", layers=32, key_heads=1, weights=FUSED),
    "falcon, tied": MixModel("falcon", layers=32, key_heads=1, tied=True, weights=FUSED),
    "phi3": MixModel("phi3", layers=8, weights=FUSED),
    "qwen3": MixModel("qwen3", layers=28, key_heads=2, tied=True),
}


def planned(model: Model, name: str, options: TypeOptions) -> dict[str, str]:
    plan = make_plan(model, GgufProfile(), name, options=options)
    return {decision.tensor.name: decision.target.name for decision in plan.decisions}


@pytest.mark.parametrize("case", list(MODELS))
def test_types_equal_llama_quantize(case: str, tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    model = MODELS[case].write(source)
    for mix in MIXES.values():
        if MODELS[case].columns % 128 and mix.name in NO_FALLBACK:
            continue
        for importance in (None, ONES):
            options = TypeOptions(has_importance=importance is not None)
            expected = chosen_types(source, mix.file_type, importance=importance)
            assert planned(model, mix.name, options) == expected, (mix.name, importance)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["Q4_K_M", "Q2_K", "IQ3_M", "Q4_0", "MXFP4_MOE", "F16"])
def test_options_equal_llama_quantize(name: str, tied: bool, tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    model = MixModel(layers=16, key_heads=2, tied=tied).write(source)
    number = MIXES[name].file_type
    for ours, theirs in (
        (TypeOptions(pure=True), {"pure": True}),
        (TypeOptions(output_type="Q5_0"), {"output_type": "Q5_0"}),
        (TypeOptions(True, "Q5_0", "Q5_1"), {"pure": True, "output_type": "Q5_0"}),
        (TypeOptions(token_embedding_type="Q8_0"), {"token_embedding_type": "Q8_0"}),
        (TypeOptions(leave_output=True), {"quantize_output_tensor": False}),
    ):
        if ours.pure and ours.output_type:
            theirs = {**theirs, "token_embedding_type": "Q5_1"}
        assert planned(model, name, ours) == chosen_types(source, number, **theirs), ours


def test_overridden_tensors_are_not_counted(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    model = MixModel(layers=16).write(source)
    for name in ("Q4_K_M", "Q4_K_S", "IQ3_XS", "Q3_K_M"):
        patterns = [("blk.[13].ffn_down.weight", "Q8_0"), ("blk.0.attn_v.weight", "IQ4_NL")]
        plan = make_plan(model, GgufProfile(), name, patterns)
        got = {d.tensor.name: d.target.name for d in plan.decisions}
        regexes = {r"blk\.[13]\.ffn_down\.weight": "Q8_0", r"blk\.0\.attn_v\.weight": "IQ4_NL"}
        assert got == chosen_types(source, MIXES[name].file_type, tensor_types=regexes)
