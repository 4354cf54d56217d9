"""The rules of mixes, by hand-made cases; llama.cpp's own choice is compared in tests/peers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from halfbyte.errors import UnsupportedError
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import Tensor, tensor_from_array
from halfbyte.kernels.layouts import LAYOUTS
from halfbyte.quant.mixes import (
    ALIASES,
    MIXES,
    SHORTER_BLOCKS,
    Category,
    Chooser,
    category_of,
    fitting_type,
    requires_importance,
    stays_float_in,
)
from halfbyte.quant.model_facts import ModelFacts, facts_of
from halfbyte.quant.type_choice import TypeChoice, TypeOptions, file_order, named_type
from support.mix_models import EXPERTS, FUSED, MixModel


def weight(name: str, shape: tuple[int, ...] = (2, 256), key: WeightKey | None = None) -> Tensor:
    return tensor_from_array(name, np.zeros(shape, np.float32)).identified(key)


def chooser(name: str, facts: ModelFacts | None = None, **options: object) -> Chooser:
    arguments = {"tied": False, "values": 8, **options}
    return Chooser(MIXES[name], facts or ModelFacts("llama", 8), **arguments)  # type: ignore[arg-type]


def chosen(name: str, stem: str, count: int = 8, **options: object) -> str:
    """Return the choices for `count` layers, a letter for each type."""
    choose = chooser(name, **options)  # type: ignore[arg-type]
    found = [choose.choose(weight(f"blk.{i}.{stem}.weight")) for i in range(count)]
    return " ".join(found)


def test_numbers_are_those_of_llama_cpp() -> None:
    numbers = [mix.file_type for mix in MIXES.values()]
    assert len(numbers) == len(set(numbers)) == 35
    assert set(range(42)) - set(numbers) == {4, 5, 6, 33, 34, 35, 39}
    assert {MIXES[target].base for target in ALIASES.values()} == {"Q3_K", "Q4_K", "Q5_K"}
    for mix in MIXES.values():
        assert mix.base in LAYOUTS or mix.base in ("F32", "F16", "BF16")


def test_more_bits_go_to_the_ends_and_every_third() -> None:
    found = chosen("Q4_K_M", "ffn_down")
    assert found == "Q6_K Q4_K Q4_K Q6_K Q4_K Q4_K Q6_K Q6_K"
    assert chosen("Q4_K_M", "attn_v") == found
    assert chosen("Q4_K_M", "attn_q") == "Q4_K " * 7 + "Q4_K"
    assert chosen("Q3_K_M", "attn_v", 4) == "Q5_K Q5_K Q4_K Q4_K"
    assert chosen("Q4_K_S", "attn_v", 6) == "Q5_K Q5_K Q5_K Q5_K Q4_K Q4_K"
    assert chosen("IQ3_XS", "ffn_up") == "IQ3_S" + " IQ3_XXS" * 6 + " IQ3_S"


def test_importance_changes_the_choice() -> None:
    assert chosen("Q4_0", "ffn_down", 2) == "Q4_0 Q4_0"
    assert chosen("Q4_0", "ffn_down", 2, has_importance=True) == "Q4_1 Q4_0"
    assert chosen("IQ4_XS", "ffn_down", 2) == "Q5_K IQ4_XS"
    assert chosen("IQ4_XS", "ffn_down", 2, has_importance=True) == "IQ4_XS IQ4_XS"
    assert chosen("IQ3_XXS", "attn_v", 1) == "IQ3_S"
    assert chosen("IQ3_XXS", "attn_v", 1, has_importance=True) == "IQ3_XXS"


def test_places_of_experts_come_from_the_name() -> None:
    choose = chooser("Q4_K_M", ModelFacts("llama", 8, experts=4))
    assert choose.choose(weight("blk.7.ffn_down_exps.weight", (4, 2, 256))) == "Q6_K"
    assert choose.choose(weight("blk.1.ffn_down_exps.weight", (4, 2, 256))) == "Q4_K"
    assert choose.choose(weight("ffn_down.weight")) == "Q4_K"


@pytest.mark.parametrize(
    ("name", "facts", "expected"),
    [
        ("Q4_K_S", ModelFacts("llama", 80, 8, is_70b=True), "Q5_K"),
        ("Q6_K", ModelFacts("llama", 80, 8, is_70b=True), "Q6_K"),
        ("Q4_K_M", ModelFacts("llama", 8, experts=8), "Q8_0"),
        ("IQ2_M", ModelFacts("llama", 8, experts=4), "Q4_K"),
        ("IQ4_XS", ModelFacts("llama", 8, grouping=4), "Q5_K"),
        ("IQ4_XS", ModelFacts("llama", 8, grouping=3), "IQ4_XS"),
        ("MXFP4_MOE", ModelFacts("llama", 8), "Q8_0"),
        ("F16", ModelFacts("llama", 8, experts=8), "F16"),
    ],
)
def test_values_follow_the_shape_of_the_model(name: str, facts: ModelFacts, expected: str) -> None:
    choose = chooser(name, facts)
    for _ in range(5):
        last = choose.choose(weight("blk.3.attn_v.weight"))
    assert last == expected


@pytest.mark.parametrize(
    ("name", "columns", "architecture", "expected"),
    [
        ("Q4_0", 256, "llama", "Q6_K"),
        ("Q4_K_M", 288, "llama", "Q8_0"),
        ("Q8_0", 256, "llama", "Q8_0"),
        ("IQ3_XXS", 256, "llama", "Q5_K"),
        ("Q4_K_M", 256, "falcon", "Q8_0"),
        ("MXFP4_MOE", 256, "llama", "Q8_0"),
    ],
)
def test_the_head(name: str, columns: int, architecture: str, expected: str) -> None:
    facts = ModelFacts(architecture, 8)
    assert chooser(name, facts).choose(weight("output.weight", (2, columns))) == expected
    tied = chooser(name, facts, tied=True)
    assert tied.choose(weight("token_embd.weight", (2, columns))) == expected


def test_names_and_roles_say_the_same() -> None:
    pairs = {
        "blk.0.attn_qkv.weight": Role.ATTENTION_QKV,
        "blk.0.attn_v.weight": Role.ATTENTION_VALUE,
        "blk.0.attn_k.weight": Role.ATTENTION_KEY,
        "blk.0.attn_q.weight": Role.ATTENTION_QUERY,
        "blk.0.attn_output.weight": Role.ATTENTION_OUTPUT,
        "blk.0.ffn_up.weight": Role.FEED_FORWARD_UP,
        "blk.0.ffn_gate.weight": Role.FEED_FORWARD_GATE,
        "blk.0.ffn_down.weight": Role.FEED_FORWARD_DOWN,
        "output.weight": Role.OUTPUT_HEAD,
        "token_embd.weight": Role.TOKEN_EMBEDDING,
    }
    for name, role in pairs.items():
        assert category_of(weight(name)) is category_of(weight("x", key=WeightKey(role, 0)))
    assert category_of(weight("blk.0.ffn_gate_up_exps.weight")) is Category.GATE
    assert category_of(weight("blk.0.attn_kv_b.weight")) is Category.VALUE
    assert category_of(weight("blk.0.ssm_in.weight")) is Category.OTHER
    bias = weight("x", key=WeightKey(Role.OUTPUT_HEAD, None, "bias"))
    assert category_of(bias) is Category.OTHER


def test_shorter_blocks_end_in_float16() -> None:
    assert fitting_type("Q4_K", 256) == "Q4_K"
    assert fitting_type("Q4_K", 288) == "Q5_0"
    assert fitting_type("IQ2_XS", 96) == "IQ4_NL"
    assert fitting_type("NVFP4", 96) == "MXFP4"
    for name in SHORTER_BLOCKS:
        assert LAYOUTS[fitting_type(name, 32)].values == 32
        assert fitting_type(name, 40) == "float16"


def test_what_needs_importance() -> None:
    assert requires_importance("IQ2_S", "IQ2_M", Category.QUERY)
    assert not requires_importance("IQ2_S", "IQ2_M", Category.EMBEDDING)
    assert requires_importance("IQ2_XS", "IQ2_S", Category.OUTPUT)
    assert requires_importance("Q2_K", "Q2_K_S", Category.DOWN)
    assert not requires_importance("Q2_K", "Q2_K", Category.DOWN)
    assert not requires_importance("IQ3_S", "IQ3_S", Category.DOWN)


def test_names_that_one_architecture_keeps() -> None:
    tensor = weight("blk.0.indexer.proj.weight")
    assert stays_float_in(tensor, "glm5-next") == "glm5-next keeps it"
    assert stays_float_in(tensor, "llama") == ""
    finer = chooser("Q4_K_M", ModelFacts("glm5-next", 8))
    assert finer.choose(weight("blk.0.attn_q_a.weight")) == "Q8_0"


def test_facts_from_keys(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    grouped = MixModel("qwen2", layers=80, heads=8, key_heads=2, experts=3, weights=EXPERTS)
    assert facts_of(grouped.write(path)) == ModelFacts("qwen2", 80, 4, 3, True)
    assert facts_of(MixModel(layers=80, heads=8, key_heads=8).write(path)).is_70b is False
    assert facts_of(MixModel(layers=80, heads=8, key_heads=4).write(path)).is_70b is True
    odd = MixModel("new", layers=3, weights=FUSED).write(path)
    del odd.metadata["gguf"]["new.block_count"]
    del odd.metadata["gguf"]["new.attention.head_count_kv"]
    assert facts_of(odd) == ModelFacts("new", 3, 1, 0, False)


def test_facts_from_a_config() -> None:
    config = {
        "model_type": "mistral",
        "num_hidden_layers": 80,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 4,
    }
    assert facts_of(Model({}, config), "llama") == ModelFacts("llama", 80, 4, 4, True)
    assert facts_of(Model({})) == ModelFacts("", 0, 0, 0, False)
    assert facts_of(Model({}, {**config, "num_key_value_heads": 0})).grouping == 0


def test_weights_are_counted_by_layer_and_name() -> None:
    names = ["blk.10.a", "token_embd.weight", "blk.2.b", "blk.2.a", "output.weight", "blk.2.B"]
    order = [name for name, _ in file_order((name, weight(name)) for name in names)]
    expected = ["output.weight", "token_embd.weight", "blk.2.B", "blk.2.a", "blk.2.b", "blk.10.a"]
    assert order == expected
    model = Model({name: weight(name) for name in names})
    kept = TypeChoice(model, named_type("Q4_K_M"), TypeOptions(source_order=True)).in_order()
    assert [name for name, _ in kept] == names


def test_names_of_types() -> None:
    assert named_type("Q4_K").name == "Q4_K_M" and named_type("Q4_K").file_type == 15
    assert named_type("int4-g32").file_type is None
    assert str(named_type("IQ2_M").base) == "IQ2_S"
    for wrong, near in (("Q4_KM", "Q4_K_M"), ("iq3m", "IQ3_M"), ("int44", "int4")):
        with pytest.raises(UnsupportedError, match=near):
            named_type(wrong)
    assert math.isclose(named_type("Q8_0").base.bits_per_weight, 8.5)
