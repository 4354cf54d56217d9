"""Logits of tiny random models against transformers in float32."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from halfbyte.converters.architectures import get_architecture
from halfbyte.converters.architectures.rope_scaling import frequencies
from halfbyte.converters.weight_map import from_canonical, model_in_rotary_order
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role
from halfbyte.runtime.session import Session
from support.random_models import random_model

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

# float32 sums in another order; 1e-4 of the largest logit is the project's bound
RELATIVE_TOLERANCE = 1e-4
LENGTH = 24
DEVICE = "cpu"


class Case(NamedTuple):
    name: str
    model_type: str
    overrides: dict[str, Any]


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": kind, **settings}}


SHORT = [1.0 + 0.1 * i for i in range(8)]
LONG = [2.0 + 0.5 * i for i in range(8)]
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
PARAMETERS = {"rope_type": "linear", "factor": 3.0, "rope_theta": 5e5}
DECODERS = [
    Case("llama", "llama", {}),
    Case("llama, tied", "llama", {"tie_word_embeddings": True}),
    Case("llama, biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    Case("llama, own head size", "llama", {"head_dim": 24}),
    Case("llama, one key-value head", "llama", {"num_key_value_heads": 1}),
    Case("llama, all heads", "llama", {"num_key_value_heads": None}),
    Case("llama, relu", "llama", {"hidden_act": "relu"}),
    Case("llama, linear", "llama", rope("linear", factor=2.0)),
    Case("llama, rope_parameters", "llama", {"rope_parameters": PARAMETERS}),
    Case("llama, old type key", "llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    Case("llama, dynamic within", "llama", rope("dynamic", factor=2.0)),
    Case("llama, dynamic beyond", "llama", {
        **rope("dynamic", factor=2.0), "max_position_embeddings": 16}),
    Case("llama, yarn", "llama", rope("yarn", **YARN)),
    Case("llama, yarn attention_factor", "llama", rope("yarn", attention_factor=1.3, **YARN)),
    Case("llama, yarn mscale", "llama", rope("yarn", mscale=0.7, mscale_all_dim=0.4, **YARN)),
    Case("llama, yarn betas", "llama", rope(
        "yarn", beta_fast=4.0, beta_slow=0.5, truncate=False, **YARN)),
    Case("llama, llama3", "llama", rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32)),
    Case("llama, longrope short", "llama", rope(
        "longrope", short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=32)),
    Case("llama, longrope long", "llama", rope(
        "longrope", short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=16)),
    Case("llama, longrope factors", "llama", rope(
        "longrope", short_factor=SHORT, long_factor=LONG, factor=6.0,
        original_max_position_embeddings=16)),
    Case("llama, longrope attention_factor", "llama", rope(
        "longrope", short_factor=SHORT, long_factor=LONG, attention_factor=1.4,
        original_max_position_embeddings=16)),
    Case("mistral, window", "mistral", {}),
    Case("mistral, no window", "mistral", {"sliding_window": None}),
    Case("mistral, default window", "mistral", {"head_dim": 32}),
    Case("qwen2", "qwen2", {}),
    Case("qwen2, untied", "qwen2", {"tie_word_embeddings": False}),
    Case("qwen2, window in the last layer", "qwen2", {
        "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    Case("qwen3", "qwen3", {}),
    Case("qwen3, biases", "qwen3", {"attention_bias": True}),
    Case("qwen3, window by type", "qwen3", {
        "use_sliding_window": True, "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"]}),
    Case("gpt2", "gpt2", {}),
    Case("gpt2, untied", "gpt2", {"tie_word_embeddings": False, "n_inner": 80}),
    Case("gpt2, scales", "gpt2", {
        "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True,
        "activation_function": "relu"}),
]  # fmt: skip
ENCODERS = [
    Case("bert", "bert", {}),
    Case("bert, other activation", "bert", {"hidden_act": "gelu_new", "type_vocab_size": 3}),
]


def reference_model(model: Model, raw: dict[str, Any]) -> Any:
    """Return the transformers model of a raw config that holds the model's weights."""
    architecture = get_architecture(model.architecture)
    settings = {k: v for k, v in raw.items() if k != "model_type"}
    config = transformers.AutoConfig.for_model(architecture.model_type, **settings)
    config._attn_implementation = "eager"
    built = getattr(transformers, architecture.hugging_face_class)(config).float().eval()
    state = {
        name: torch.from_numpy(from_canonical(tensor, architecture).numpy().copy())
        for name, tensor in model.weights.items()
    }
    missing, unexpected = built.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight", "pooler.dense.weight", "pooler.dense.bias"}
    built.tie_weights()
    return built


def token_ids(model: Model, batch: int = 2, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(7).integers(0, model.config["vocab_size"], (batch, length))


def our_logits(model: Model, ids: np.ndarray, pieces: tuple[int, ...] = ()) -> np.ndarray:
    """Run `ids` in pieces that end at the given positions, then the rest."""
    session = Session(model, DEVICE, compute="exact")
    found, start = [], 0
    for stop in (*pieces, ids.shape[1]):
        positions = np.broadcast_to(np.arange(start, stop), (len(ids), stop - start))
        feed = {"input_ids": ids[:, start:stop], "position_ids": np.ascontiguousarray(positions)}
        feed["output_positions"] = np.arange(stop - start)
        found.append(session.run(feed)["logits"].copy())
        start = stop
    return np.concatenate(found, axis=1)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= RELATIVE_TOLERANCE * np.abs(expected).max()


def by_name(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.mark.parametrize("theta", [1e4, 5e5, 1e7])
@pytest.mark.parametrize("size", [64, 80, 128])
@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3", "longrope"])
def test_frequencies_are_within_two_units_in_the_last_place(
    kind: str, size: int, theta: float
) -> None:
    settings: dict[str, Any] = {
        "default": {},
        "linear": {"factor": 4.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 32768},
        "llama3": {
            "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "longrope": {
            "short_factor": [1 + 0.01 * i for i in range(size // 2)],
            "long_factor": [1.0 + i for i in range(size // 2)],
            "original_max_position_embeddings": 4096,
        },
    }[kind]  # fmt: skip
    raw: dict[str, Any] = {
        "hidden_size": size, "num_attention_heads": 1, "rope_theta": theta,
        "max_position_embeddings": 131072, "rope_scaling": {"rope_type": kind, **settings},
    }  # fmt: skip
    peer = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(
        transformers.LlamaConfig(**{**raw, "rope_scaling": dict(raw["rope_scaling"])})
    )
    found = frequencies(get_architecture("llama").canonical_config(raw), {})
    np.testing.assert_array_max_ulp(found.inverse, peer.inv_freq.numpy(), 2)
    assert found.attention_factor == pytest.approx(peer.attention_scaling, rel=1e-12)


@by_name(DECODERS)
def test_decoder_logits_equal_transformers(case: Case) -> None:
    model = random_model(case.model_type, **case.overrides)
    architecture = get_architecture(case.model_type)
    ids = token_ids(model)
    raw = {**architecture.EXAMPLE, **case.overrides}
    with torch.no_grad():
        expected = reference_model(model, raw)(torch.from_numpy(ids)).logits.numpy()
        written = architecture.hugging_face_config(model.config)
        again = reference_model(model, written)(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_array_equal(again, expected)
    assert_close(our_logits(model, ids), expected)


@by_name(DECODERS)
def test_decoding_in_steps_equals_transformers(case: Case) -> None:
    model = random_model(case.model_type, seed=1, **case.overrides)
    ids = token_ids(model)
    pieces = (11, 14, 15, 16, 17, 18)
    peer = reference_model(model, {**get_architecture(case.model_type).EXAMPLE, **case.overrides})
    expected, cache, start = [], transformers.DynamicCache(), 0
    with torch.no_grad():
        for stop in (*pieces, LENGTH):
            piece = torch.from_numpy(ids[:, start:stop])
            output = peer(piece, past_key_values=cache, use_cache=True)
            expected.append(output.logits.numpy())
            start = stop
    assert_close(our_logits(model, ids, pieces), np.concatenate(expected, axis=1))


@by_name([case for case in DECODERS if "beyond" not in case.name and "long" not in case.name])
def test_decoding_in_steps_equals_one_shot(case: Case) -> None:
    model = random_model(case.model_type, seed=2, **case.overrides)
    ids = token_ids(model)
    assert_close(our_logits(model, ids, (5, 6, 7, 20)), our_logits(model, ids))


def test_interleaved_rows_give_the_same_logits() -> None:
    model = random_model("llama", attention_bias=True)
    turned = model_in_rotary_order(model, get_architecture("llama"), interleaved=True)
    assert turned.config["rope_interleaved"]
    ids = token_ids(model)
    assert_close(our_logits(turned, ids), our_logits(model, ids))


@by_name(ENCODERS)
@pytest.mark.parametrize("pooled", [True, False])
def test_encoder_states_equal_transformers(case: Case, pooled: bool) -> None:
    skip = () if pooled else (Role.POOLER,)
    model = random_model(case.model_type, skip=skip, **case.overrides)
    architecture = get_architecture(case.model_type)
    ids = token_ids(model)
    mask = np.ones_like(ids)
    mask[1, 15:] = 0
    types = np.zeros_like(ids)
    types[:, 9:] = 1
    peer = reference_model(model, {**architecture.EXAMPLE, **case.overrides})
    with torch.no_grad():
        expected = peer(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            token_type_ids=torch.from_numpy(types),
        )
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    found = Session(model, DEVICE, compute="exact").run(feed)
    seen = mask.astype(bool)
    assert_close(found["last_hidden_state"][seen], expected.last_hidden_state.numpy()[seen])
    assert ("pooler_output" in found) == pooled
    if pooled:
        assert_close(found["pooler_output"], expected.pooler_output.numpy())
