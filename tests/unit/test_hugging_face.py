"""Hugging Face folders: reading, writing, shards, ties, prefixes, dtypes, atomic output."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save

from halfbyte.converters import detect
from halfbyte.converters.architectures import get_architecture
from halfbyte.converters.format import ReadOptions, WriteOptions
from halfbyte.converters.hugging_face.format import HUGGING_FACE
from halfbyte.converters.hugging_face.profile import HuggingFaceProfile
from halfbyte.converters.hugging_face.safetensors import CODES
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import Tensor, tensor_from_array
from halfbyte.ir.tokenizer import Tokenizer
from support.random_models import random_model
from support.safetensors_files import write_folder

TYPES = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "bert"]
HEAD = WeightKey(Role.OUTPUT_HEAD)
LLAMA = {"model_type": "llama", **get_architecture("llama").EXAMPLE}


def read(path: Path, **options: Any) -> Model:
    return HUGGING_FACE.read(path, ReadOptions(**options))


def assert_same_weights(found: Model, expected: Model) -> None:
    ours, theirs = found.by_key(), expected.by_key()
    assert set(ours) == set(theirs)
    for key, tensor in theirs.items():
        assert ours[key].shape == tensor.shape
        assert np.array_equal(ours[key].numpy().view(np.uint8), tensor.numpy().view(np.uint8))


def llama_arrays(**overrides: Any) -> dict[str, np.ndarray]:
    return {n: t.numpy() for n, t in random_model("llama", **overrides).weights.items()}


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_round_trip_of_every_architecture(model_type: str, threads: int, tmp_path: Path) -> None:
    model = random_model(model_type)
    written = HUGGING_FACE.write(model, tmp_path / "out", WriteOptions(threads=threads))
    found = detect(tmp_path / "out").read(tmp_path / "out", ReadOptions())
    assert_same_weights(found, model)
    assert found.config | {"architectures": 0} == model.config | {
        "architectures": 0,
        "torch_dtype": "float32",
    }
    assert sum(w.nbytes for w in written) == sum(t.nbytes for t in model.weights.values())
    assert len(found.graph.nodes) == len(model.graph.nodes)


@pytest.mark.parametrize("model_type", TYPES)
def test_same_bytes_for_the_same_input(model_type: str, tmp_path: Path) -> None:
    model = random_model(model_type)
    HUGGING_FACE.write(model, tmp_path / "a", WriteOptions(threads=1))
    again = read(tmp_path / "a")
    HUGGING_FACE.write(again, tmp_path / "b", WriteOptions(threads=4))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_file_equals_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.arange(5, dtype=np.int8),
        "c": np.ones((2, 2, 2), np.float16),
        "ü": np.arange(3, dtype=np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(7, np.float64),
    }
    path = tmp_path / "in.safetensors"
    path.write_bytes(save(arrays, {"format": "pt"}))
    HUGGING_FACE.write(read(path), tmp_path / "out.safetensors", WriteOptions())
    assert (tmp_path / "out.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype_name", CODES)
def test_every_dtype_is_kept(dtype_name: str, tmp_path: Path) -> None:
    dtype = Dense(dtype_name).dtype
    values = np.arange(12).reshape(3, 4).astype(dtype)
    tensor = tensor_from_array("w", values)
    HUGGING_FACE.write(Model({"w": tensor}), tmp_path / "w.safetensors", WriteOptions())
    found = read(tmp_path / "w.safetensors").weights["w"]
    assert found.encoding == Dense(dtype_name)
    assert np.array_equal(found.numpy().view(np.uint8), values.view(np.uint8))


def test_source_files_stay_as_they_are(tmp_path: Path) -> None:
    config = json.dumps({**LLAMA, "torch_dtype": "float32", "note": "ä"}, ensure_ascii=False)
    files = {
        "config.json": config.encode(),
        "generation_config.json": b'{ "eos_token_id": 2 }',
        "LICENSE": b"licence text",
        "unrelated.txt": b"left behind",
    }
    source = write_folder(tmp_path / "in", llama_arrays(), None, files)
    model = read(source)
    assert model.generation_config == {"eos_token_id": 2}
    HUGGING_FACE.write(model, tmp_path / "out", WriteOptions())
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["LICENSE", "config.json", "generation_config.json", "model.safetensors"]
    for name in names[:1] + names[2:3]:
        assert (tmp_path / "out" / name).read_bytes() == files[name]
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(config)


def test_config_says_the_dtype_that_was_written(tmp_path: Path) -> None:
    config = {**LLAMA, "dtype": "float32"}
    model = read(write_folder(tmp_path / "in", llama_arrays(), config))
    halves = {n: t.numpy().astype(ml_dtypes.bfloat16) for n, t in model.weights.items()}
    changed = {
        n: replace(tensor_from_array(n, halves[n]), role=t.role, layer=t.layer, kind=t.kind)
        for n, t in model.weights.items()
    }
    HUGGING_FACE.write(model.with_weights(changed), tmp_path / "out", WriteOptions())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["dtype"] == "bfloat16"
    assert "torch_dtype" not in written


def test_changed_config_is_written_anew(tmp_path: Path) -> None:
    model = read(write_folder(tmp_path / "in", llama_arrays(), LLAMA))
    longer = replace(model, config={**model.config, "max_position_embeddings": 128})
    HUGGING_FACE.write(longer, tmp_path / "out", WriteOptions())
    assert json.loads((tmp_path / "out/config.json").read_text())["max_position_embeddings"] == 128


def test_lone_surrogate_stays_an_escape(tmp_path: Path) -> None:
    config = {**LLAMA, "note": "\ud800"}
    model = read(write_folder(tmp_path / "in", llama_arrays(), config))
    HUGGING_FACE.write(model, tmp_path / "out", WriteOptions())
    assert rb'"\ud800"' in (tmp_path / "out" / "config.json").read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["note"] == "\ud800"


def test_generation_config_of_another_source(tmp_path: Path) -> None:
    model = replace(random_model("llama"), generation_config={"eos_token_id": 5})
    HUGGING_FACE.write(model, tmp_path / "out", WriteOptions())
    text = (tmp_path / "out" / "generation_config.json").read_text()
    assert json.loads(text) == {"eos_token_id": 5}


@pytest.mark.parametrize("shard_bytes", [1, 30_000, 60_000])
def test_shards(shard_bytes: int, tmp_path: Path) -> None:
    model = random_model("llama")
    options = WriteOptions(threads=2, shard_bytes=shard_bytes)
    HUGGING_FACE.write(model, tmp_path / "out", options)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.weights.values())
    shards = sorted(set(index["weight_map"].values()))
    assert shards[-1] == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    for shard in shards:
        arrays = load_file(tmp_path / "out" / shard)
        assert {n for n, s in index["weight_map"].items() if s == shard} == set(arrays)
        assert len(arrays) == 1 or sum(a.nbytes for a in arrays.values()) <= shard_bytes
    assert_same_weights(read(tmp_path / "out"), model)
    (tmp_path / "out" / "model.safetensors.index.json").unlink()
    assert_same_weights(read(tmp_path / "out"), model)


def test_interleaved_rows_are_put_in_order(tmp_path: Path) -> None:
    plain = random_model("llama")
    architecture = get_architecture("llama")
    turned = {}
    for name, tensor in plain.weights.items():
        order = (
            None if tensor.key is None else architecture.row_order(tensor.key, plain.config, True)
        )
        turned[name] = tensor if order is None else tensor.take_rows(order)
    interleaved = replace(
        plain.with_weights(turned), config={**plain.config, "rope_interleaved": True}
    )
    HUGGING_FACE.write(interleaved, tmp_path / "out", WriteOptions())
    assert_same_weights(read(tmp_path / "out"), plain)
    assert "rope_interleaved" not in (tmp_path / "out" / "config.json").read_text()


def test_gpt2_matrices_are_transposed(tmp_path: Path) -> None:
    model = random_model("gpt2")
    HUGGING_FACE.write(model, tmp_path / "out", WriteOptions())
    stored = load_file(tmp_path / "out" / "model.safetensors")
    name = "transformer.h.0.mlp.c_fc.weight"
    assert np.array_equal(stored[name], model.weights[name].numpy().T)
    assert read(tmp_path / "out").weights[name].shape == model.weights[name].shape


@pytest.mark.parametrize(("model_type", "prefix"), [("gpt2", "transformer."), ("bert", "bert.")])
def test_names_without_prefix_are_understood_and_kept(
    model_type: str, prefix: str, tmp_path: Path
) -> None:
    model = random_model(model_type)
    HUGGING_FACE.write(model, tmp_path / "a", WriteOptions())
    stored = load_file(tmp_path / "a" / "model.safetensors")
    bare = {name.removeprefix(prefix): array for name, array in stored.items()}
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    found = read(write_folder(tmp_path / "b", bare, config))
    assert_same_weights(found, model)
    HUGGING_FACE.write(found, tmp_path / "c", WriteOptions())
    assert set(load_file(tmp_path / "c" / "model.safetensors")) == set(bare)


def test_tied_head_that_repeats_the_embedding_is_dropped(tmp_path: Path) -> None:
    config = {**LLAMA, "tie_word_embeddings": True}
    arrays = llama_arrays(tie_word_embeddings=True)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    model = read(write_folder(tmp_path / "in", arrays, config))
    assert HEAD not in model.by_key()
    assert model.config["tie_word_embeddings"] is True
    assert model.warnings == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_tied_head_that_differs_is_kept(dtype: Any, tmp_path: Path) -> None:
    config = {**LLAMA, "tie_word_embeddings": True}
    arrays = llama_arrays(tie_word_embeddings=True)
    arrays["lm_head.weight"] = (arrays["model.embed_tokens.weight"] + 1).astype(dtype)
    model = read(write_folder(tmp_path / "in", arrays, config))
    assert HEAD in model.by_key()
    assert model.config["tie_word_embeddings"] is False
    assert "kept untied" in model.warnings[0]
    HUGGING_FACE.write(model, tmp_path / "out", WriteOptions())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["tie_word_embeddings"] is False


def test_buffers_are_left_out_and_strangers_kept(tmp_path: Path) -> None:
    arrays = llama_arrays()
    arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    arrays["vision.weight"] = np.ones((2, 2), np.float32)
    model = read(write_folder(tmp_path / "in", arrays, LLAMA))
    assert "vision.weight" in model.weights
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" not in model.weights
    assert [note.split(" ")[1] for note in model.warnings] == [
        "'model.layers.0.self_attn.rotary_emb.inv_freq'",
        "'vision.weight'",
    ]
    HUGGING_FACE.write(model, tmp_path / "out", WriteOptions())
    assert "vision.weight" in load_file(tmp_path / "out" / "model.safetensors")


def test_both_spellings_of_a_name_are_refused(tmp_path: Path) -> None:
    arrays = llama_arrays()
    arrays["norm.weight"] = arrays["model.norm.weight"]
    with pytest.raises(FormatError, match=r"both name output_norm\.weight"):
        read(write_folder(tmp_path / "in", arrays, LLAMA))


@pytest.mark.parametrize(
    ("config", "note"),
    [
        (None, "no config.json"),
        ({"hidden_size": 4}, "has no model_type"),
        ({"model_type": "brandnew"}, "architecture 'brandnew' is not known"),
    ],
)
def test_unknown_architecture_gives_weights_only(
    config: dict[str, Any] | None, note: str, tmp_path: Path
) -> None:
    arrays = {"x.weight": np.ones((4, 4), np.float32)}
    model = read(write_folder(tmp_path / "in", arrays, config))
    assert note in model.warnings[0]
    assert model.build is None
    assert model.weights["x.weight"].key is None
    HUGGING_FACE.write(model, tmp_path / "out", WriteOptions())
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == {"x.weight"}
    if config is not None:
        written = json.loads((tmp_path / "out" / "config.json").read_text())
        assert written == {**config, "torch_dtype": "float32"}


def test_lone_file_beside_its_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", llama_arrays(), LLAMA)
    model = detect(folder / "model.safetensors").read(folder / "model.safetensors", ReadOptions())
    assert model.architecture == "llama"
    assert_same_weights(model, random_model("llama"))


def test_weight_file_of_another_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", llama_arrays(), LLAMA)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert_same_weights(read(folder), random_model("llama"))


def test_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--some--name"
    blobs = write_folder(cache / "blobs", llama_arrays(), LLAMA)
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(blobs / name)
    model = read(snapshot)
    assert_same_weights(model, random_model("llama"))
    assert (model.provenance.source, model.provenance.revision) == ("org/some/name", "abc")


def test_unreadable_tokenizer_is_carried_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(files: dict[str, bytes]) -> None:
        raise UnsupportedError("tokenizer of kind 'new'", "tokenizer.json")

    monkeypatch.setattr("halfbyte.converters.tokenizers.from_hugging_face", refuse)
    files = {"tokenizer.json": b'{"new": true}'}
    model = read(write_folder(tmp_path / "in", llama_arrays(), LLAMA, files))
    assert model.tokenizer is None
    assert "tokenizer not read, its files are carried along" in model.warnings[0]
    HUGGING_FACE.write(model, tmp_path / "out", WriteOptions())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == files["tokenizer.json"]


def test_tokenizer_with_too_many_tokens_is_refused(tmp_path: Path) -> None:
    tokens = tuple(f"t{i}" for i in range(200))
    model = replace(random_model("llama"), tokenizer=Tokenizer("bpe", tokens))
    with pytest.raises(FormatError, match="has 200 tokens, the model's vocabulary holds 128"):
        HUGGING_FACE.write(model, tmp_path / "out", WriteOptions())
    assert list(tmp_path.iterdir()) == []


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    model = random_model("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    block = encoding_from_name("Q8_0")
    tensor = model.weights[name]
    from halfbyte.quant.algorithms.rtn import requantize

    mixed = model.with_weights({**model.weights, name: requantize(tensor, block)})
    with pytest.raises(UnsupportedError, match=f"encoding Q8_0 of '{name}' is not supported"):
        HUGGING_FACE.write(mixed, tmp_path / "out", WriteOptions())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flavour", ["squeeze", "gguf"])
def test_unknown_flavour_is_refused(flavour: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=f"flavour '{flavour}' is not supported"):
        HUGGING_FACE.profile(flavour)
    with pytest.raises(UnsupportedError, match="--to hf"):
        HUGGING_FACE.write(random_model("llama"), tmp_path / "x", WriteOptions(flavour=flavour))


def test_weight_without_a_name_is_refused(tmp_path: Path) -> None:
    model = random_model("llama")
    odd = model.weights["model.norm.weight"].identified(WeightKey(Role.POOLER)).renamed("odd")
    with pytest.raises(UnsupportedError, match=r"weight 'odd' \(pooler\.weight\) of llama"):
        HUGGING_FACE.write(
            model.with_weights({**model.weights, "odd": odd}), tmp_path / "x", WriteOptions()
        )


def test_two_weights_with_one_name_are_refused(tmp_path: Path) -> None:
    model = random_model("llama")
    twin = model.weights["model.norm.weight"].identified(None)
    weights: dict[str, Tensor] = {**model.weights, "twin": twin}
    with pytest.raises(UnsupportedError, match=r"name 'model\.norm\.weight' for both"):
        HUGGING_FACE.write(model.with_weights(weights), tmp_path / "x", WriteOptions())


def test_rotary_tensors_stay_in_the_config(tmp_path: Path) -> None:
    model = random_model("llama")
    divisors = tensor_from_array("rope_freqs.weight", np.ones(8, np.float32))
    divisors = divisors.identified(WeightKey(Role.ROPE_DIVISORS))
    HUGGING_FACE.write(
        model.with_weights({**model.weights, "rope_freqs.weight": divisors}),
        tmp_path / "out",
        WriteOptions(),
    )
    assert_same_weights(read(tmp_path / "out"), model)


def test_output_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama")

    def fail(nbytes: int) -> None:
        raise HalfbyteError("stopped half way")

    with pytest.raises(HalfbyteError, match="stopped half way"):
        HUGGING_FACE.write(model, tmp_path / "out", WriteOptions(threads=2, progress=fail))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(HalfbyteError, match="already exists and is not an empty folder"):
        HUGGING_FACE.write(model, tmp_path / "out", WriteOptions())
    assert (tmp_path / "out" / "mine").read_text() == "precious"


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    model = random_model("llama")
    counted: list[int] = []
    HUGGING_FACE.write(model, tmp_path / "out", WriteOptions(threads=2, progress=counted.append))
    assert sum(counted) == sum(t.nbytes for t in model.weights.values())


def test_large_tensors_are_read_in_ranges(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3000, 1000)).astype(np.float32)
    path = tmp_path / "big.safetensors"
    path.write_bytes(save({"w": values}))
    counted: list[int] = []
    options = WriteOptions(threads=2, progress=counted.append)
    HUGGING_FACE.write(read(path), tmp_path / "out.safetensors", options)
    assert len(counted) > 2
    assert np.array_equal(load_file(tmp_path / "out.safetensors")["w"], values)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of maps")
def test_tensors_of_one_file_share_one_map(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    path.write_bytes(save({f"t{i}": np.full(3, i, np.int32) for i in range(200)}))
    weights = read(path).weights
    held = [tensor.numpy() for tensor in weights.values()]
    maps = Path("/proc/self/maps").read_text()
    assert maps.count(str(path)) == 1
    assert [int(array[0]) for array in held] == [int(name[1:]) for name in weights]
    with pytest.raises(ValueError, match="read-only"):
        held[0][0] = 1
    path.write_bytes(save({"t0": np.full(3, 7, np.int32)}))
    assert read(path).weights["t0"].numpy().tolist() == [7, 7, 7]


def test_profile() -> None:
    profile = HuggingFaceProfile()
    tensor = tensor_from_array("w", np.ones((2, 32), np.float16))
    assert profile.name == HUGGING_FACE.name == "hf"
    assert profile.required(tensor) is None
    assert profile.accepts(tensor, Dense("bfloat16"))
    assert not profile.accepts(tensor, encoding_from_name("Q4_0"))
    assert profile.alternatives(tensor)[0] == Dense("float16")
    quantized = replace(tensor, encoding=encoding_from_name("Q4_0"))
    assert profile.alternatives(quantized)[0] == Dense("float32")


def test_detection(tmp_path: Path) -> None:
    assert not HUGGING_FACE.detect(tmp_path)
    (tmp_path / "x.txt").write_text("plain text")
    assert not HUGGING_FACE.detect(tmp_path / "x.txt")
    assert not HUGGING_FACE.detect(tmp_path / "absent")
    (tmp_path / "weights").write_bytes(save({"a": np.ones(2)}))
    assert HUGGING_FACE.detect(tmp_path / "weights")
    write_folder(tmp_path / "in", llama_arrays())
    assert HUGGING_FACE.detect(tmp_path / "in")


def test_wide_type_is_named_beside_float8(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "a": np.ones((64, 64), np.float32).astype(ml_dtypes.float8_e4m3fn),
        "b": np.ones(4, np.float32).astype(ml_dtypes.bfloat16),
    }
    weights = {name: tensor_from_array(name, array) for name, array in arrays.items()}
    model = Model(weights, {"model_type": "brandnew"})
    HUGGING_FACE.write(model, tmp_path / "out", WriteOptions())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["torch_dtype"] == "bfloat16"
    assert read(tmp_path / "out").weights["a"].encoding == Dense("float8_e4m3fn")
