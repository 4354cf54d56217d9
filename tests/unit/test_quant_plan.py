"""The plan: which encoding each weight gets, why, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import pytest

from halfbyte.converters.hugging_face.checkpoints.gptq import GPTQ
from halfbyte.converters.hugging_face.profile import HuggingFaceProfile
from halfbyte.errors import HalfbyteError, QuantizationError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.ggml_legacy import Q8_0
from halfbyte.ir.encodings.transcode import Verdict
from halfbyte.ir.model import Model
from halfbyte.ir.profile import TableProfile, stays_float
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import Tensor, tensor_from_array
from halfbyte.quant.algorithms.rtn import requantize
from halfbyte.quant.plan import Decision, Plan, apply_plan, make_plan
from support.encoded import bits, held, normal_rows

FLOATS = ("float32", "float16", "bfloat16")
BLOCKS = TableProfile("blocks", (*FLOATS, "i64", "Q*"), float_type="float32")
ANY = TableProfile("any", ("*",))
DENSE = TableProfile("dense", (*FLOATS, "float8*"))

NAMES = {
    WeightKey(Role.TOKEN_EMBEDDING): ("embed.weight", "token_embd.weight", (50, 64)),
    WeightKey(Role.OUTPUT_NORM): ("norm.weight", "output_norm.weight", (64,)),
    WeightKey(Role.OUTPUT_HEAD): ("head.weight", "output.weight", (50, 64)),
    WeightKey(Role.ATTENTION_QUERY, 0): ("h.0.q.weight", "blk.0.attn_q.weight", (64, 64)),
    WeightKey(Role.ATTENTION_QUERY, 0, "bias"): ("h.0.q.bias", "blk.0.attn_q.bias", (64,)),
    WeightKey(Role.FEED_FORWARD_DOWN, 0): ("h.0.down.weight", "blk.0.ffn_down.weight", (64, 96)),
    WeightKey(Role.FEED_FORWARD_DOWN, 1): ("h.1.down.weight", "blk.1.ffn_down.weight", (64, 96)),
    WeightKey(Role.FEED_FORWARD_UP, 0): ("h.0.up.weight", "blk.0.ffn_up.weight", (96, 40)),
}
GGUF = {key: gguf for key, (_, gguf, _) in NAMES.items()}


def aliases(tensor: Tensor) -> list[str]:
    return [] if tensor.key is None else [GGUF[tensor.key]]


def model(dtype: object = ml_dtypes.bfloat16, without: tuple[Role, ...] = ()) -> Model:
    weights = {}
    for key, (name, _, shape) in NAMES.items():
        if key.role in without:
            continue
        values = normal_rows(int(np.prod(shape[:-1])), shape[-1]).reshape(shape)
        weights[name] = tensor_from_array(name, values.astype(dtype)).identified(key)
    return Model(weights)


def quantized_model(name: str) -> Model:
    source = model(np.float32, without=(Role.FEED_FORWARD_UP,))
    encoding = encoding_from_name(name)
    weights = {
        n: t if stays_float(t) else held(requantize(t, encoding)) for n, t in source.weights.items()
    }
    return Model(weights)


def single(array: np.ndarray, name: str = "x.weight", key: WeightKey | None = None) -> Model:
    return Model({name: tensor_from_array(name, array).identified(key)})


def targets(plan: Plan) -> dict[str, str]:
    return {decision.tensor.name: str(decision.target) for decision in plan.decisions}


def test_norms_and_biases_take_no_8_bit_float() -> None:
    found = targets(make_plan(model(np.float32), DENSE, "float8_e4m3fn"))
    assert found["norm.weight"] == found["h.0.q.bias"] == "float32"
    assert found["h.0.q.weight"] == found["embed.weight"] == "float8_e4m3fn"


def test_a_block_type_follows_llama_quantize() -> None:
    plan = make_plan(model(), BLOCKS, "Q4_0")
    assert targets(plan) == {
        "embed.weight": "Q4_0",
        "norm.weight": "float32",
        "head.weight": "Q8_0",
        "h.0.q.weight": "Q4_0",
        "h.0.q.bias": "float32",
        "h.0.down.weight": "Q4_0",
        "h.1.down.weight": "Q4_0",
        "h.0.up.weight": "float16",
    }
    assert plan["h.0.q.weight"].verdict is Verdict.QUANTIZED
    assert plan["norm.weight"].verdict is Verdict.EXACT
    assert plan["h.0.up.weight"].verdict is Verdict.ROUNDED
    assert str(plan["embed.weight"].source) == "bfloat16"
    assert plan["head.weight"].reason == "rows of 64 do not divide into blocks"
    assert plan["norm.weight"].reason == "norms stay float"
    assert plan["h.0.q.bias"].reason == "biases stay float"
    assert plan["h.0.up.weight"].reason == "rows of 40 do not divide into blocks"
    assert plan.warnings == (
        "head.weight: Q8_0 instead of Q6_K, rows of 64 values do not divide into blocks of 256 "
        "(Q6_K); choose a type with blocks of 32, float16 or an affine type",
        "h.0.up.weight: float16 instead of Q4_0, rows of 40 values do not divide into blocks "
        "of 32 (Q4_0); choose float16 or an affine type",
    )


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_tied_embedding_is_the_head(name: str) -> None:
    plan = make_plan(model(without=(Role.OUTPUT_HEAD,)), BLOCKS, name)
    assert targets(plan)["embed.weight"] == "Q8_0"


def test_affine_types_apply_to_every_matrix_but_the_head() -> None:
    plan = make_plan(model(), ANY, "int4-g32")
    got = targets(plan)
    assert got.pop("norm.weight") == got.pop("h.0.q.bias") == "bfloat16"
    assert got.pop("head.weight") == "int8-g32"
    assert set(got.values()) == {"int4-g32"}
    tied = make_plan(model(without=(Role.OUTPUT_HEAD,)), ANY, "int3-g64-asym")
    assert targets(tied)["embed.weight"] == "int8-g64-asym"
    assert targets(make_plan(model(), BLOCKS, "Q8_0"))["head.weight"] == "Q8_0"


def test_dense_types_reach_norms_unless_the_container_fixes_them() -> None:
    assert set(targets(make_plan(model(), DENSE, "float16")).values()) == {"float16"}
    got = targets(make_plan(model(), BLOCKS, "F16"))
    assert got["norm.weight"] == "float32" and got["head.weight"] == "float16"


def test_weights_beyond_float16_stay_wider() -> None:
    source = model()
    big = tensor_from_array("h.0.q.weight", np.full((64, 64), 1e5, ml_dtypes.bfloat16))
    weights = dict(source.weights)
    weights["h.0.q.weight"] = big.identified(weights["h.0.q.weight"].key)
    plan = make_plan(Model(weights), DENSE, "float16")
    assert targets(plan)["h.0.q.weight"] == "bfloat16"
    assert plan["h.0.q.weight"].reason == "beyond the range of float16"
    assert "h.0.q.weight: bfloat16 instead of float16, holds 99840" in plan.warnings[0]
    single_big = single(np.full((2, 64), 1e39))
    narrow = TableProfile("narrow", ("float16", "bfloat16", "float32"))
    with pytest.raises(QuantizationError, match=r"tensor 'x\.weight': holds 1e\+39"):
        make_plan(single_big, narrow, "float16")
    only_half = TableProfile("half", ("float16",))
    with pytest.raises(QuantizationError, match="beyond the range of float16"):
        make_plan(single(np.full((2, 64), 1e5, np.float32)), only_half, "float16")


@pytest.mark.parametrize(
    "pattern",
    [
        "h.*.down.weight",
        "h.*.down",
        "blk.*.ffn_down",
        "blk.?.ffn_down.weight",
        "layers.*.feed_forward_down",
        "layers.*.feed_forward_down.weight",
    ],
)
def test_overrides_match_every_name(pattern: str) -> None:
    plan = make_plan(model(), BLOCKS, "Q4_0", [(pattern, "Q8_0")], aliases=aliases)
    got = targets(plan)
    assert got["h.0.down.weight"] == got["h.1.down.weight"] == "Q8_0"
    assert got["h.0.q.weight"] == "Q4_0"
    assert plan["h.0.down.weight"].reason == f"--tensor {pattern}"


def test_the_last_override_wins() -> None:
    plan = make_plan(model(), BLOCKS, "Q4_0", [("h.*.down", "Q8_0"), ("h.1.*", "Q5_1")])
    got = targets(plan)
    assert (got["h.0.down.weight"], got["h.1.down.weight"]) == ("Q8_0", "Q5_1")


def test_overrides_work_without_a_type() -> None:
    got = targets(make_plan(model(), ANY, "", [("h.0.down", "Q8_0")]))
    assert got.pop("h.0.down.weight") == "Q8_0"
    assert set(got.values()) == {"bfloat16"}


def test_an_override_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(HalfbyteError) as error:
        make_plan(model(), BLOCKS, "Q4_0", [("blk.*.ffn_dwon", "Q8_0")], aliases=aliases)
    message = str(error.value)
    assert message.startswith(
        "--tensor blk.*.ffn_dwon=Q8_0: no weight has such a name; nearest are"
    )
    assert "'blk.0.ffn_down'" in message
    with pytest.raises(UnsupportedError, match="encoding 'q8' is not supported"):
        make_plan(model(), BLOCKS, "Q4_0", [("*", "q8")])


def test_overrides_of_what_stays_float_have_no_effect_and_warn() -> None:
    plan = make_plan(model(), BLOCKS, "Q4_0", [("*", "Q8_0")])
    got = targets(plan)
    assert got["norm.weight"] == got["h.0.q.bias"] == "float32" and got["embed.weight"] == "Q8_0"
    assert "norm.weight: --tensor * has no effect, norms stay float" in plan.warnings
    without_type = make_plan(model(), BLOCKS, "", [("norm*", "Q8_0")])
    assert targets(without_type)["norm.weight"] == "float32"
    fixed = make_plan(model(), BLOCKS, "Q4_0", [("norm", "float16")])
    assert targets(fixed)["norm.weight"] == "float32"
    assert fixed.warnings[0] == "norm.weight: --tensor norm has no effect, blocks needs float32"
    free = make_plan(model(), ANY, "Q4_0", [("norm", "float16")])
    assert targets(free)["norm.weight"] == "float16"


def test_an_override_the_container_cannot_hold_is_an_error() -> None:
    with pytest.raises(UnsupportedError) as error:
        make_plan(model(), DENSE, "float16", [("h.0.q", "Q8_0")])
    assert str(error.value) == (
        "tensor 'h.0.q.weight': Q8_0 in dense is not supported; "
        "supported: float32, float16, float8_e4m3fn, float8_e5m2"
    )
    ids = single(np.zeros((2, 64), np.int64))
    with pytest.raises(UnsupportedError, match=r"i64 to Q8_0 without loss"):
        make_plan(ids, ANY, "", [("x", "Q8_0")])


def test_a_type_the_container_never_holds_is_an_error() -> None:
    with pytest.raises(UnsupportedError) as error:
        make_plan(model(), DENSE, "Q4_0")
    assert "format dense: type Q4_0 is not supported; supported: float32" in str(error.value)
    with pytest.raises(UnsupportedError, match="format blocks: type int8 .*; supported: Q8_0, "):
        make_plan(model(), BLOCKS, "int8")


def test_alternatives_are_those_of_weights_that_take_codes() -> None:
    with pytest.raises(UnsupportedError, match="format hf:gptq: .*supported: int4-g32, "):
        make_plan(model(), GPTQ.profile(), "Q4_0")
    with pytest.raises(UnsupportedError, match="format hf: type int4-g32 .* hf:gptq, hf:awq, "):
        make_plan(model(), HuggingFaceProfile(), "int4-g32")


def test_a_type_the_container_holds_for_some_weights_only() -> None:
    class NoEmbedding(TableProfile):
        def accepts(self, tensor: Tensor, encoding) -> bool:
            embedding = tensor.role is Role.TOKEN_EMBEDDING and encoding.is_quantized
            return not embedding and super().accepts(tensor, encoding)

    plan = make_plan(model(), NoEmbedding("some", ("*",)), "int4-g32")
    assert targets(plan)["embed.weight"] == "bfloat16"
    assert plan["embed.weight"].reason == "some cannot hold int4-g32 here"


def test_quantized_sources_need_requantize() -> None:
    source = quantized_model("Q5_1")
    with pytest.raises(UnsupportedError) as error:
        make_plan(source, BLOCKS, "Q4_0")
    assert str(error.value) == (
        "tensor 'embed.weight': Q5_1 to Q4_0 without loss is not supported; "
        "supported: float32; or allow it to be quantized again (--requantize)"
    )
    plan = make_plan(source, BLOCKS, "Q4_0", requantize=True)
    assert plan["embed.weight"].verdict is Verdict.QUANTIZED
    rounded = make_plan(source, BLOCKS, "float16", requantize=True)
    assert rounded["embed.weight"].verdict is Verdict.ROUNDED
    with pytest.raises(UnsupportedError, match="Q5_1 to float16 without loss"):
        make_plan(source, BLOCKS, "float16")


def test_lossless_targets_need_no_permission() -> None:
    plan = make_plan(quantized_model("Q4_0"), ANY, "int4-g32")
    assert plan["h.0.q.weight"].verdict is Verdict.EXACT
    assert plan["h.0.q.weight"].reason == "type int4-g32"
    widened = make_plan(quantized_model("int4-g64"), ANY, "int8-g32")
    assert widened["h.0.q.weight"].verdict is Verdict.REGROUPED
    decoded = make_plan(quantized_model("Q4_1"), ANY, "float32")
    assert decoded["h.0.q.weight"].verdict is Verdict.EXACT_TO_ROUNDING


def test_verdicts_that_depend_on_data_are_settled_by_the_data() -> None:
    source = quantized_model("int4-g32-f32")
    with pytest.raises(UnsupportedError, match="int4-g32-f32 to Q4_0 without loss"):
        make_plan(source, BLOCKS, "Q4_0")
    exact = quantized_model("Q4_0")
    widened = apply_plan(exact, make_plan(exact, ANY, "int4-g32-f32"))
    plan = make_plan(widened, BLOCKS, "", [("h.*.down", "Q4_0")])
    assert plan["h.0.down.weight"].verdict is Verdict.EXACT


def test_without_a_type_encodings_are_kept_where_they_can_be() -> None:
    source = quantized_model("Q8_0")
    kept = make_plan(source, ANY)
    assert all(d.target == d.source and d.verdict is Verdict.EXACT for d in kept.decisions)
    assert kept["embed.weight"].reason == "kept"
    opened = make_plan(source, DENSE)
    assert targets(opened)["embed.weight"] == "float32"
    assert opened["embed.weight"].reason == "dense cannot hold Q8_0"
    affine = TableProfile("affine", ("int8-g32", "float32"))
    assert targets(make_plan(source, affine))["embed.weight"] == "int8-g32"
    small = single(normal_rows(2, 64).astype(ml_dtypes.float8_e4m3fn))
    assert targets(make_plan(small, BLOCKS)) == {"x.weight": "float16"}
    assert targets(make_plan(small, DENSE)) == {"x.weight": "float8_e4m3fn"}


def test_without_a_type_nothing_is_quantized_silently() -> None:
    source = quantized_model("Q8_0")
    narrow = TableProfile("narrow", ("int4-g32", "bfloat16", "float16"), float_type="float32")
    with pytest.raises(UnsupportedError) as error:
        make_plan(source, narrow)
    assert str(error.value).startswith(
        "tensor 'embed.weight': Q8_0 in narrow without loss is not supported; supported: "
    )
    assert str(error.value).endswith("give --type, or --requantize to take the nearest type")
    plan = make_plan(source, narrow, requantize=True)
    assert plan["embed.weight"].verdict in (Verdict.QUANTIZED, Verdict.ROUNDED)
    nothing = TableProfile("nothing", ("float32",))
    with pytest.raises(UnsupportedError, match="i64 in nothing without loss"):
        make_plan(single(np.zeros((2, 64), np.int64)), nothing, requantize=True)


def test_other_tensors_are_left_alone() -> None:
    ids = single(np.arange(64, dtype=np.int64), "position_ids")
    plan = make_plan(ids, ANY, "Q8_0")
    assert targets(plan) == {"position_ids": "i64"}
    table = single(np.arange(128, dtype=np.int64).reshape(2, 64))
    assert targets(make_plan(table, ANY, "float16")) == {"x.weight": "i64"}
    assert targets(make_plan(table, ANY, "Q8_0")) == {"x.weight": "i64"}
    quantized_table = quantized_model("Q8_0")
    name = "embed.weight"
    key = WeightKey(Role.POSITION_EMBEDDING)
    position = Model({name: quantized_table.weights[name].identified(key)})
    assert targets(make_plan(position, ANY, "Q4_0")) == {name: "float32"}
    assert targets(make_plan(position, BLOCKS, "Q4_0")) == {name: "float32"}
    assert targets(make_plan(position, DENSE, "Q4_0")) == {name: "float32"}


@pytest.mark.parametrize(
    ("shape", "name", "key", "reason"),
    [
        ((4, 4), "a.weight", None, ""),
        ((2, 4, 4), "blk.0.ffn_down_exps.weight", None, ""),
        ((4,), "a.weight", None, "vectors stay float"),
        ((1, 4), "a.weight", None, "vectors stay float"),
        ((), "a.weight", None, "vectors stay float"),
        ((4, 4), "a.bias", WeightKey(Role.ATTENTION_QUERY, 0, "bias"), "biases stay float"),
        ((4, 4), "a", WeightKey(Role.ATTENTION_QUERY, 0), ""),
        ((4, 4), "a", WeightKey(Role.FEED_FORWARD_NORM, 0), "norms stay float"),
        (
            (4, 4),
            "wpe.weight",
            WeightKey(Role.POSITION_EMBEDDING),
            "position_embedding stays float",
        ),
        ((4, 4), "table", None, "not a matrix of weights"),
        ((4, 4, 3, 3), "conv.weight", None, "not a matrix of weights"),
        ((4, 4), "blk.0.ffn_gate_inp.weight", None, "its name is one that is never quantized"),
        ((4, 4), "blk.0.attn_norm.weight", None, "its name is one that is never quantized"),
    ],
)
def test_what_stays_float(shape, name: str, key: WeightKey | None, reason: str) -> None:
    tensor = tensor_from_array(name, np.ones(shape, np.float32)).identified(key)
    assert stays_float(tensor) == reason


@dataclass(frozen=True)
class Opaque(Q8_0):
    @property
    def name(self) -> str:
        return "Q6_K"

    @property
    def can_decode(self) -> bool:
        return False


def test_types_that_are_only_carried_are_kept_or_refused() -> None:
    key = WeightKey(Role.FEED_FORWARD_UP, 0)
    tensor = tensor_from_array("up.weight", np.zeros((2, 64), np.uint8))
    opaque = Model({"up.weight": replace(tensor, encoding=Opaque()).identified(key)})
    assert targets(make_plan(opaque, ANY)) == {"up.weight": "Q6_K"}
    for profile, type_name in ((DENSE, ""), (ANY, "Q4_0"), (ANY, "float32")):
        with pytest.raises(UnsupportedError) as error:
            make_plan(opaque, profile, type_name, requantize=True)
        assert str(error.value) == (
            "tensor 'up.weight': decoding Q6_K is not supported; "
            "its bytes can only be copied to a container that holds them"
        )


def test_heads_without_roles_are_known_by_name() -> None:
    weights = {
        name: tensor_from_array(name, normal_rows(4, 64))
        for name in ("token_embd.weight", "output.weight", "blk.0.ffn_up.weight")
    }
    got = targets(make_plan(Model(weights), BLOCKS, "Q4_0"))
    assert got == {
        "token_embd.weight": "Q4_0",
        "output.weight": "Q8_0",
        "blk.0.ffn_up.weight": "Q4_0",
    }
    del weights["output.weight"]
    assert targets(make_plan(Model(weights), BLOCKS, "Q4_0"))["token_embd.weight"] == "Q8_0"


def test_applying_a_plan_gives_the_planned_bytes() -> None:
    source = model(np.float32)
    plan = make_plan(source, BLOCKS, "Q4_0")
    done = apply_plan(source, plan)
    assert list(done.weights) == list(source.weights)
    for decision in plan.decisions:
        tensor = done.weights[decision.tensor.name]
        assert tensor.encoding == decision.target and tensor.key == decision.tensor.key
        if decision.target.is_quantized:
            expected = decision.target.encode(decision.tensor.float32())
            assert bits(tensor.read()) == bits(expected)
    norm = done.weights["norm.weight"]
    assert norm is source.weights["norm.weight"]
    assert done.weights["h.0.up.weight"].decode().dtype == np.float16


def test_applying_keeps_what_is_exact_exact() -> None:
    source = quantized_model("Q4_0")
    done = apply_plan(source, make_plan(source, ANY, "int4-g32"))
    back = apply_plan(done, make_plan(done, BLOCKS, "", [("*.down", "Q4_0")]))
    for name, tensor in source.weights.items():
        np.testing.assert_array_equal(done.weights[name].decode(), tensor.decode())
    assert bits(back.weights["h.0.down.weight"].read()) == bits(
        source.weights["h.0.down.weight"].read()
    )


def test_applying_passes_importance_by_name() -> None:
    source = model(np.float32)
    plan = make_plan(source, BLOCKS, "Q4_0")
    importance = {"h.0.q.weight": np.linspace(0, 9, 64, dtype=np.float32)}
    done = apply_plan(source, plan, importance=importance)
    expected = encoding_from_name("Q4_0").encode(
        source.weights["h.0.q.weight"].float32(), importance["h.0.q.weight"]
    )
    assert bits(done.weights["h.0.q.weight"].read()) == bits(expected)
    with pytest.raises(UnsupportedError, match="method 'gptq' is not supported"):
        apply_plan(source, plan, method="gptq")


def test_decisions_are_found_by_name() -> None:
    plan = make_plan(model(), ANY)
    assert isinstance(plan["norm.weight"], Decision)
    assert plan.type_name == ""


def test_table_profiles_refuse_rows_that_do_not_fit() -> None:
    tensor = tensor_from_array("x.weight", normal_rows(2, 40))
    assert not BLOCKS.accepts(tensor, encoding_from_name("Q4_0"))
    assert BLOCKS.accepts(tensor, encoding_from_name("float16"))
    vector = tensor_from_array("v", np.ones(32, np.float32))
    assert not ANY.accepts(vector, encoding_from_name("Q4_0"))
    assert BLOCKS.required(vector) == encoding_from_name("float32")
    assert BLOCKS.required(replace(vector, encoding=encoding_from_name("i32"))) is None
    names = [e.name for e in BLOCKS.alternatives(tensor_from_array("x.weight", normal_rows(2, 64)))]
    assert names[0] == "float16" or "float32" not in names
