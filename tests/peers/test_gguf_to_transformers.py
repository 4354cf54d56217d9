"""GGUF files of llama.cpp's kind back to folders: transformers computes the same from both.

The files are ours without our own key, which tests/golden/test_conversion_golden.py holds to those
of llama.cpp's script; where HALFBYTE_LLAMA_CPP_SOURCE names its tree, the script's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from halfbyte.converters import get_format, read
from halfbyte.converters.format import WriteOptions
from halfbyte.converters.gguf.metadata import CONFIG_KEY
from halfbyte.converters.gguf.output import output
from halfbyte.converters.gguf.writer import write_gguf
from support.gguf_models import fitted
from support.llama_cpp_scripts import conversion, require_source_tree, run
from support.model_folders import write_model
from support.script_cases import CASES
from support.script_models import write_folder_case

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TEXTS = (
    "Hello world, the thing and other 12345 things!",
    "  two  spaces\n\nnew\tline ",
    "the <|im_end|> x<s> [SEP]</s>",
    "Ünï 日本 \U0001f600 e\u0301",
    "",
)
IDS = [[1, 5, 9, 100, 3, 77, 64, 2]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("folders")
    return {name: write_folder_case(case, parent) for name, case in CASES.items()}


def our_file(folder: Path, path: Path, type_name: str = "") -> Path:
    """Write a GGUF file as a tool without our own key would."""
    made = output(fitted(read(folder), type_name))
    write_gguf(path, {k: v for k, v in made.metadata.items() if k != CONFIG_KEY}, made.tensors)
    return path


def back(path: Path, type_name: str = "") -> Path:
    folder = path.with_name(path.stem + "-back")
    return write_model(read(path), folder, type_name)


def loaded(folder: Path) -> Any:
    is_encoder = json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    kind = transformers.AutoModel if is_encoder else transformers.AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def computed(model: Any) -> Any:
    with torch.no_grad():
        found = model(torch.tensor(IDS))
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def check_same_model(folder: Path, again: Path) -> None:
    first, second = loaded(folder), loaded(again)
    assert torch.equal(computed(first), computed(second))
    for key in ("tie_word_embeddings", "vocab_size", "max_position_embeddings", "hidden_size"):
        assert getattr(first.config, key) == getattr(second.config, key)
    kinds = {"MistralForCausalLM": "LlamaForCausalLM"}
    classes = [kinds.get(name, name) for name in first.config.architectures]
    assert second.config.architectures == classes


def ids_by(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    return (
        tokenizer.encode(text).ids,
        tokenizer.encode(text, add_special_tokens=False).ids,
    )


def check_same_tokenizer(folder: Path, again: Path) -> None:
    ours = transformers.AutoTokenizer.from_pretrained(again)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for name in ("bos_token", "eos_token", "pad_token", "sep_token", "mask_token"):
        if getattr(theirs, name) is not None:
            assert getattr(ours, name) == getattr(theirs, name)
    if (folder / "tokenizer.json").is_file():
        # transformers' own class for Llama splits leading spaces in a way of its own
        first = Tokenizer.from_file(str(folder / "tokenizer.json"))
        second = Tokenizer.from_file(str(again / "tokenizer.json"))
        for text in TEXTS:
            assert ids_by(first, text) == ids_by(second, text)
            ids = first.encode(text).ids
            assert ours.encode(text) == ids
            assert first.decode(ids) == second.decode(ids)
    expected, found = theirs.chat_template, ours.chat_template
    if isinstance(expected, dict):  # names keep letters and digits only
        expected = {name.replace("-", "_"): text for name, text in expected.items()}
    assert found == expected


def check_same_weights(folder: Path, again: Path) -> None:
    """Every weight that llama.cpp keeps has the same float32 values."""
    first = load_file(folder / "model.safetensors")
    second = load_file(again / "model.safetensors")
    names = {name.removeprefix("bert."): name for name in first}
    dropped = ("pooler.", "cls.")
    assert second.keys() == {name for name in names if not name.startswith(dropped)}
    for name, array in second.items():
        expected = first[names[name]]
        np.testing.assert_array_equal(array.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("name", CASES)
def test_back_from_a_file_like_llama_cpp_s(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    again = back(our_file(folders[name], tmp_path / f"{name}.gguf"))
    check_same_model(folders[name], again)
    check_same_weights(folders[name], again)
    check_same_tokenizer(folders[name], again)


def test_back_from_files_of_the_script(folders: dict[str, Path], tmp_path: Path) -> None:
    require_source_tree()
    paths = {name: tmp_path / f"{name}.gguf" for name in CASES}
    run([conversion(folders[n], "f32", path, CASES[n].pre) for n, path in paths.items()])
    for name, path in paths.items():
        again = back(path)
        check_same_model(folders[name], again)
        check_same_weights(folders[name], again)
        check_same_tokenizer(folders[name], again)


@pytest.mark.parametrize("name", ["llama-rope3", "qwen3-tied", "bert-masked-head"])
def test_bfloat16_comes_back_whole(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    again = back(our_file(folders[name], tmp_path / "m.gguf", "BF16"))
    check_same_model(folders[name], again)
    check_same_weights(folders[name], again)
    settings = json.loads((again / "config.json").read_text())
    assert settings.get("dtype", settings.get("torch_dtype")) == "bfloat16"


def test_quantized_files_come_back_as_their_float_values(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    path = our_file(folders["llama-gqa"], tmp_path / "m.gguf", "Q8_0")
    again = back(path, "float32")
    model = read(path)
    by_key = {tensor.key: tensor for tensor in read(again).weights.values()}
    for tensor in model.weights.values():
        if tensor.role is not None and "attention_" not in str(tensor.role.value):
            np.testing.assert_array_equal(by_key[tensor.key].float32(), tensor.float32())
    assert computed(loaded(again)).shape == (1, 8, model.config["vocab_size"])


def test_generation_settings_come_back(folders: dict[str, Path], tmp_path: Path) -> None:
    again = back(our_file(folders["llama-rope3"], tmp_path / "m.gguf"))
    found = json.loads((again / "generation_config.json").read_text())
    assert found["eos_token_id"] == [2, 0]
    assert (found["temperature"], found["top_p"], found["do_sample"]) == (0.6, 0.9, True)
    settings = transformers.GenerationConfig.from_pretrained(again)
    settings.validate()
    assert settings.eos_token_id == [2, 0]


def test_pooling_comes_back(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, mode in (("bert-mean", "mean_tokens"), ("qwen2-embedding", "lasttoken")):
        again = back(our_file(folders[name], tmp_path / f"{name}.gguf"))
        settings = json.loads((again / "1_Pooling/config.json").read_text())
        assert [key for key, value in settings.items() if value is True] == [f"pooling_mode_{mode}"]
        assert "pooling_type" not in json.loads((again / "config.json").read_text())
        there = our_file(again, tmp_path / f"{name}-2.gguf")
        assert (
            read(there).config["pooling_type"]
            == read(tmp_path / f"{name}.gguf").config["pooling_type"]
        )


def test_divisors_that_no_settings_give(folders: dict[str, Path], tmp_path: Path) -> None:
    """Any divisors become longrope factors; transformers computes with them what we do."""
    from halfbyte.converters.architectures.rope_scaling import DIVISORS
    from halfbyte.ir.tensor import tensor_from_array
    from halfbyte.runtime.session import Session

    model = read(our_file(folders["llama-rope3"], tmp_path / "m.gguf"))
    key = next(n for n, tensor in model.weights.items() if tensor.key == DIVISORS)
    odd = np.linspace(1.0, 3.0, 8, dtype=np.float32)[::-1].copy()
    weights = {**model.weights, key: tensor_from_array(key, odd).identified(DIVISORS)}
    metadata = model.metadata["gguf"]
    write_gguf(tmp_path / "odd.gguf", metadata, list(weights.values()))
    changed = read(tmp_path / "odd.gguf")
    assert changed.config["rope_scaling"] is None
    again = tmp_path / "again"
    get_format("hf").write(changed, again, WriteOptions())
    theirs = computed(loaded(again)).numpy()[0]
    ids = np.array(IDS, np.int64)
    ours = Session(changed, compute="exact").run({"input_ids": ids})["logits"][0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
