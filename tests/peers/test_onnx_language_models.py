"""Our ONNX language models in onnxruntime and onnxruntime-genai, and its builder's in ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte.converters.format import WriteOptions
from halfbyte.converters.native.profile import NativeProfile
from halfbyte.converters.onnx.language_model import write_language_model
from halfbyte.converters.onnx.reader import read_model
from halfbyte.converters.tokenizers.codec import Codec
from halfbyte.ir.model import Model
from halfbyte.quant.plan import apply_plan, make_plan
from halfbyte.runtime.sampling import GREEDY
from halfbyte.runtime.session import Session
from halfbyte.text_generation import TextRequest, generate_text
from support.random_models import random_model
from support.real_models import require_model

ort = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.peer

FLAVOURS = ("", "static", "ort")
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
TYPES = ("", "float16", "Q4_1", "Q8_0")
MORE_TYPES = (
    *("bfloat16", "Q4_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("int2-g32", "int3-g16", "int4-g128", "int5-g32", "int6-g64", "int7-g32"),
    *(
        "int8",
        "int4-g32-asym",
        "int4-g32-fzp-f32",
        "int8-g64-asym",
        "int4-g32-actorder",
        "int4-g48",
    ),
)
TOLERANCE = 1e-4
NEAR_TIE = 1e-3  # of the largest logit
PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


def quantized(model: Model, type_name: str) -> Model:
    if not type_name:
        return model
    return apply_plan(model, make_plan(model, NativeProfile(), type_name, requantize=True))


def open_session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options)


class Decoder:
    """A written decoder in onnxruntime, with its cache."""

    def __init__(self, path: Path, batch: int = 1, head_size: int = 0) -> None:
        self.session = open_session(path)
        self.names = [value.name for value in self.session.get_outputs()]
        self.inputs = {value.name: value.shape for value in self.session.get_inputs()}
        self.past = {
            name: np.zeros((batch, shape[1], 0, head_size or shape[3]), np.float32)
            for name, shape in self.inputs.items()
            if name.startswith("past")
        }
        self.mask = np.zeros((batch, 0), np.int64)

    def step(self, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Run ids [batch, sequence]; mask says which are tokens. Return their logits."""
        mask = np.ones(ids.shape, np.int64) if mask is None else mask
        self.mask = np.concatenate([self.mask, mask], axis=1)
        feeds = {"input_ids": ids, "attention_mask": self.mask, **self.past}
        if "position_ids" in self.inputs:
            places = np.maximum(np.cumsum(self.mask, axis=1) - 1, 0)
            feeds["position_ids"] = places[:, -ids.shape[1] :]
        found = dict(zip(self.names, self.session.run(None, feeds), strict=True))
        self.keep(found)
        return found["logits"]

    def keep(self, found: dict[str, np.ndarray]) -> None:
        """Take the outputs' cache for the next step."""
        self.past = {
            name.replace("present", "past_key_values"): array
            for name, array in found.items()
            if name.startswith("present")
        }


class StaticDecoder:
    """A written decoder with caches of a fixed length, which onnxruntime updates in place.

    Places that hold nothing have any finite value: onnxruntime multiplies values by weights of 0.
    """

    def __init__(self, path: Path, batch: int, capacity: int) -> None:
        self.session = open_session(path)
        self.inputs = {value.name: value.shape for value in self.session.get_inputs()}
        self.held = np.zeros(batch, np.int64)
        self.cache = {
            name: ort.OrtValue.ortvalue_from_numpy(
                np.full((batch, shape[1], capacity, shape[3]), 99, np.float32)
            )
            for name, shape in self.inputs.items()
            if "_cache." in name
        }

    def step(self, ids: np.ndarray, counts: Any = None) -> np.ndarray:
        """Run ids [batch, sequence], of which `counts` are tokens; return their logits."""
        places = self.held[:, None] + np.arange(ids.shape[1])
        feeds = {
            "input_ids": ids,
            "position_ids": places,
            "write_indices": self.held,
            "nonpad_kv_seqlen": self.held + ids.shape[1],
        }
        binding = self.session.io_binding()
        for name, array in feeds.items():
            if name in self.inputs:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, cache in self.cache.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(f"updated_{name}", cache)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        self.held = self.held + (ids.shape[1] if counts is None else counts)
        return binding.get_outputs()[-1].numpy()


def decoder_of(path: Path, flavour: str, batch: int, capacity: int) -> Decoder | StaticDecoder:
    return StaticDecoder(path, batch, capacity) if flavour == "static" else Decoder(path, batch)


def compare(model: Model, path: Path, flavour: str) -> None:
    """Compare prefill, three decode steps and a batch of two with our runtime."""
    write_language_model(model, path, WriteOptions(flavour=flavour))
    ids = np.random.default_rng(1).integers(0, model.config["vocab_size"], (2, 12))
    session, decoder, held = Session(model), decoder_of(path, flavour, 2, 13), 0
    for count in (9, 1, 1, 1):
        step = ids[:, held : held + count]
        expected = session.run({"input_ids": step})["logits"]
        limit = TOLERANCE * np.abs(expected).max()
        np.testing.assert_allclose(decoder.step(step), expected, rtol=0, atol=limit)
        held += count


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("architecture", DECODERS)
def test_decoders_give_our_logits(architecture, type_name, flavour, tmp_path):
    compare(quantized(random_model(architecture), type_name), tmp_path / "m.onnx", flavour)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("type_name", MORE_TYPES)
def test_every_type_gives_our_logits(type_name, flavour, tmp_path):
    if type_name.endswith("_K"):
        sizes = {"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 512}
    else:
        sizes = {"hidden_size": 192, "num_attention_heads": 6, "intermediate_size": 288}
    model = quantized(random_model("llama", **sizes), type_name)
    compare(model, tmp_path / "m.onnx", flavour)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    "settings",
    [
        {"rope_interleaved": True},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 8},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True, "num_key_value_heads": 1},
        {"hidden_act": "gelu"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_llama(settings, flavour, tmp_path):
    compare(quantized(random_model("llama", **settings), "Q4_0"), tmp_path / "m.onnx", flavour)


@pytest.mark.parametrize("flavour", ["", "ort"])
@pytest.mark.parametrize("type_name", ["", "Q8_0", "int4-g32-asym"])
def test_an_encoder_gives_our_states(type_name, flavour, tmp_path):
    model = quantized(random_model("bert"), type_name)
    write_language_model(model, tmp_path / "m.onnx", WriteOptions(flavour=flavour))
    ids = np.random.default_rng(3).integers(0, 128, (2, 7))
    mask = np.asarray([[1] * 7, [1] * 4 + [0] * 3])
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    expected = Session(model).run(feeds)
    session = open_session(tmp_path / "m.onnx")
    for value, found in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        wanted = expected[value.name]
        kept = mask.astype(bool) if wanted.ndim == 3 else slice(None)
        limit = TOLERANCE * np.abs(wanted).max()
        np.testing.assert_allclose(found[kept], wanted[kept], rtol=0, atol=limit)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_left_padding_of_the_standard_flavour(architecture, tmp_path):
    model = random_model(architecture)
    write_language_model(model, tmp_path / "m.onnx", WriteOptions())
    ids = np.random.default_rng(5).integers(0, 128, (2, 10))
    mask = np.ones((2, 10), np.int64)
    mask[1, :4] = 0
    decoder = Decoder(tmp_path / "m.onnx", 2)
    found = decoder.step(ids[:, :9], mask[:, :9])
    last = decoder.step(ids[:, 9:])
    for row, start in ((0, 0), (1, 4)):
        alone = Session(model).run({"input_ids": ids[row : row + 1, start:]})["logits"][0]
        limit = TOLERANCE * np.abs(alone).max()
        np.testing.assert_allclose(found[row, start:], alone[:-1], rtol=0, atol=limit)
        np.testing.assert_allclose(last[row, 0], alone[-1], rtol=0, atol=limit)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_right_padding_of_the_ort_flavour(architecture, tmp_path):
    model = random_model(architecture)
    write_language_model(model, tmp_path / "m.onnx", WriteOptions(flavour="ort"))
    ids = np.random.default_rng(7).integers(0, 128, (2, 10))
    mask = np.ones((2, 9), np.int64)
    mask[1, 5:] = 0
    decoder = Decoder(tmp_path / "m.onnx", 2)
    found = decoder.step(ids[:, :9], mask)
    last = decoder.step(ids[:, 9:])
    for row, length in ((0, 9), (1, 5)):
        own = np.append(ids[row, :length], ids[row, 9])[None]
        alone = Session(model).run({"input_ids": own})["logits"][0]
        limit = TOLERANCE * np.abs(alone).max()
        np.testing.assert_allclose(found[row, :length], alone[:-1], rtol=0, atol=limit)
        np.testing.assert_allclose(last[row, 0], alone[-1], rtol=0, atol=limit)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_right_padding_of_the_static_flavour(architecture, tmp_path):
    model = random_model(architecture)
    write_language_model(model, tmp_path / "m.onnx", WriteOptions(flavour="static"))
    ids = np.random.default_rng(7).integers(0, 128, (2, 10))
    decoder = StaticDecoder(tmp_path / "m.onnx", 2, 10)
    found = decoder.step(ids[:, :9], [9, 5])
    last = decoder.step(ids[:, 9:])
    for row, length in ((0, 9), (1, 5)):
        own = np.append(ids[row, :length], ids[row, 9])[None]
        alone = Session(model).run({"input_ids": own})["logits"][0]
        limit = TOLERANCE * np.abs(alone).max()
        np.testing.assert_allclose(found[row, :length], alone[:-1], rtol=0, atol=limit)
        np.testing.assert_allclose(last[row, 0], alone[-1], rtol=0, atol=limit)


@pytest.fixture(scope="module", params=["onnx", "onnx:static", "onnx:ort"])
def smollm2(request, tmp_path_factory) -> Path:
    source, flavour = require_model("smollm2"), request.param
    folder = tmp_path_factory.mktemp("smollm2") / flavour.partition(":")[2]
    folder.mkdir(exist_ok=True)
    # In a process of its own: memory that other tests hold would count.
    command = [sys.executable, "-m", "halfbyte", "convert", source, folder / "model.onnx"]
    command += ["--to", flavour, "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert report["peak_memory_bytes"] < 400e6
    assert report["bytes"] < 1.1 * source.stat().st_size
    verdicts = {t["source_encoding"]: t["verdict"] for t in report["tensors"]}
    assert verdicts == {"Q4_1": "exact to rounding", "Q8_0": "exact", "float32": "exact"}
    return folder


def test_smollm2_says_the_same_tokens(smollm2):
    model = halfbyte.open(require_model("smollm2"))
    text = " ".join(f"{word} and the {word}s of the old town" for word in ("river", "king", "song"))
    text += " It was the year when nobody in the village could remember how the summer had begun."
    ids = np.asarray([Codec(model.tokenizer).encode(text, add_special=False, parse_special=False)])
    ours = Session(model).run({"input_ids": ids})["logits"][0]
    theirs = decoder_of(smollm2 / "model.onnx", smollm2.name, 1, 256).step(ids)[0]
    scale = np.abs(ours).max()
    assert np.abs(theirs - ours).max() < TOLERANCE * scale
    top = np.sort(ours, axis=-1)
    clear = top[:, -1] - top[:, -2] > NEAR_TIE * scale
    assert clear.sum() > 30
    np.testing.assert_array_equal(ours.argmax(-1)[clear], theirs.argmax(-1)[clear])


def test_smollm2_goes_back_to_gguf(smollm2):
    back = smollm2 / "back.gguf"
    halfbyte.convert(smollm2 / "model.onnx", back)
    assert back.read_bytes() == require_model("smollm2").read_bytes()
    back.unlink()


def test_onnxruntime_genai_generates(smollm2):
    genai = pytest.importorskip("onnxruntime_genai")
    if not (smollm2 / "genai_config.json").exists():
        assert not (smollm2 / "tokenizer.json").exists()
        return
    loaded = genai.Model(str(smollm2))
    tokenizer = genai.Tokenizer(loaded)
    parameters = genai.GeneratorParams(loaded)
    parameters.set_search_options(max_length=48, do_sample=False)
    generator = genai.Generator(loaded, parameters)
    prompt = tokenizer.encode(PROMPT)
    generator.append_tokens(prompt)
    chosen = []
    while not generator.is_done():
        generator.generate_next_token()
        chosen.append(int(generator.get_next_tokens()[0]))
    model = halfbyte.open(require_model("smollm2"))
    request = TextRequest(PROMPT, raw=True, max_tokens=len(chosen), sampling=GREEDY)
    ours = generate_text(model, Session(model), request)
    assert [int(token) for token in prompt] == ours.prompt_token_ids
    assert chosen[: len(ours.token_ids)] == ours.token_ids
    assert tokenizer.decode(chosen) == ours.text == "The capital of France is Paris."


def checkpoint(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from support.tiny_tokenizers import CHAT_CONFIG, byte_level_json, files

    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=640, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    described = {**CHAT_CONFIG, "tokenizer_class": "PreTrainedTokenizerFast"}
    for name, content in files(byte_level_json(), described).items():
        (folder / name).write_bytes(content)
    return folder


def exact_products(path: Path) -> Path:
    """Return a copy of a model whose products take float32 activations instead of 8-bit ones."""
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(path, load_external_data=False)
    for node in proto.graph.node:
        for setting in node.attribute:
            if setting.name == "accuracy_level":
                setting.i = 1
    copy = path.with_name("exact.onnx")
    onnx.save(proto, copy)
    return copy


def test_the_builder_of_onnxruntime_genai_is_recognised(tmp_path):
    pytest.importorskip("onnxruntime_genai")
    pytest.importorskip("onnx_ir", reason="onnxruntime-genai's builder needs onnx-ir")
    source, out = checkpoint(tmp_path / "hf"), tmp_path / "out"
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source)]
    command += ["-o", str(out), "-p", "int4", "-e", "cpu", "-c", str(tmp_path / "cache")]
    command += ["--extra_options", "int4_block_size=32"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    model = read_model(out / "model.onnx")
    assert model.architecture == "qwen3" and not model.warnings, model.warnings
    assert model.config["rope_theta"] == 1e6 and model.config["tie_word_embeddings"]
    described = json.loads((out / "genai_config.json").read_text())["model"]
    assert model.generation_config["eos_token_id"] == described["eos_token_id"]
    ids = np.random.default_rng(6).integers(0, 640, (1, 9))
    ours = Session(model).run({"input_ids": ids})["logits"]
    exact = exact_products(out / "model.onnx")
    theirs = Decoder(exact, head_size=16).step(ids)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=TOLERANCE * np.abs(ours).max())
