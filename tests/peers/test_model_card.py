"""Names and model cards read as gguf-py reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from halfbyte.converters.gguf.model_card import authorship_keys, front_matter
from halfbyte.converters.gguf.model_name import name_parts

gguf: Any = pytest.importorskip("gguf")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore::ResourceWarning")]

IDS = [
    "Mistral", "Mixtral-8x7B-Instruct-v0.1", "meta-llama/Meta-Llama-3.1-8B-Instruct",
    "Qwen/Qwen2.5-0.5B-Instruct", "HuggingFaceTB/SmolLM2-135M", "bigscience/bloom-7b1-petals",
    "google/gemma-2-2b-it", "stabilityai/stablelm-2-1_6b-chat", "openai-community/gpt2-medium",
    "openai-community/gpt2-xl", "microsoft/Phi-3-mini-4k-instruct", "./here", "../up", "a/b/c",
    "NousResearch/Hermes-3-Llama-3.1-8B", "sentence-transformers/all-MiniLM-L6-v2",
    "crestf411/daybreak-kunoichi-2dpo-v2-7b", "Qwen1.5-MoE-A2.7B-Chat", "x-Q4_K_M-7b-fp16",
    "jukofyork/Some-Model-LORA-128k-v1.2", "model-v2-v3", "3B-model", "v2-7B", "--x--7B--",
    "Llama-3-8B-8B-32K-small", "with words and 7B", "iter1000-large-vision", "0.5B-1.0",
]  # fmt: skip
PARAMETERS = [0, 135_000_000, 7_000_000_000, -8_000_000_000, -20_000_000]


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("model_id", IDS)
def test_names(model_id: str, parameters: int) -> None:
    theirs = gguf.Metadata.get_model_id_components(model_id, parameters)
    ours = name_parts(model_id, parameters)
    found = (
        ours.name, ours.organization, ours.basename, ours.finetune, ours.version, ours.size_label
    )  # fmt: skip
    assert found == tuple(part or "" for part in theirs)


CARDS = [
    "license: mit\ntags: [a, b]\nlanguage: en",
    "license: [mit, other]\nlicense_name: n\nlicense_link: https://x\npipeline_tag: fill-mask",
    "model_name: Given\nmodel_creator: C\nmodel_type: llama\nlanguages: [de, fr]\nlanguage:\n- no",
    "name: N\nauthor: A\nversion: v3\norganization: O\ndescription: D\nfinetune: F\nbasename: B\n"
    "size_label: 7B\nurl: https://u\ndoi: d\nuuid: i\nrepo_url: https://r",
    "base_model: meta-llama/Llama-3.2-1B\ndatasets:\n- a/b\n- https://huggingface.co/c/d-v2",
    "base_models: [a/b-7B-v1, 'https://huggingface.co/c/d', 'https://e.f/g', nameless]\n"
    "dataset: one/two-three",
    "base_model_sources:\n- name: By hand\n  author: A\n  doi: x1\ndataset_sources: x/y",
    "tags:\n- a\t\nbase_model: null",
]


@pytest.mark.parametrize("folder", ["Some-Model-7B-Chat-v1.5", "plain", "gpt2-small-3B"])
@pytest.mark.parametrize("text", CARDS)
def test_cards(tmp_path: Path, text: str, folder: str) -> None:
    card = f"---\n{text}\n---\n# Title\n"
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "README.md").write_text(card)
    theirs = gguf.Metadata.load(None, tmp_path / folder, None, 7_000_000_000)
    theirs.size_label = theirs.size_label or gguf.size_label(7_000_000_000, 0, 0, 0)
    writer = Recorder()
    theirs.set_gguf_meta_model(writer)
    ours = authorship_keys(front_matter({"README.md": card.encode()}), ["", folder], 7_000_000_000)
    assert list(ours.items()) == list(writer.keys.items())


class Recorder(gguf.GGUFWriter):  # type: ignore[misc]
    """A writer that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(None, "llama")
        self.keys: dict[str, Any] = {}

    def add_key_value(self, key: str, val: Any, *args: Any, **kwargs: Any) -> None:
        if hasattr(self, "keys") and val != "":
            self.keys[key] = val
