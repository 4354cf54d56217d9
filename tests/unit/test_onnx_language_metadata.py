"""Metadata of a written language model that does not fit its file is refused, case by case."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from halfbyte.converters.format import WriteOptions
from halfbyte.converters.onnx import metadata
from halfbyte.converters.onnx.language_model import write_language_model
from halfbyte.converters.onnx.reader import read_model
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from halfbyte.quant.plan import apply_plan, make_plan
from support.model_folders import tiny_model

Props = dict[str, str]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    from halfbyte.converters.native.profile import NativeProfile

    model = tiny_model("llama", num_hidden_layers=1)
    model = apply_plan(model, make_plan(model, NativeProfile(), "Q4_0", requantize=True))
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    write_language_model(model, path, WriteOptions(flavour="ort"))
    return path


def changed(written: Path, tmp_path: Path, change: Callable[[Props, Any], None]) -> Path:
    proto = onnx.load(written)
    props = {p.key: p.value for p in proto.metadata_props}
    change(props, proto)
    del proto.metadata_props[:]
    for key, value in props.items():
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def weights(edit: Callable[[list[dict[str, Any]]], None]) -> Callable[[Props, Any], None]:
    def change(props: Props, proto: Any) -> None:
        table = json.loads(props["halfbyte.weights"])
        edit(table)
        props["halfbyte.weights"] = json.dumps(table)

    return change


def entry(table: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(e for e in table if e["name"] == name)


QUERY, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"


def put(key: str, value: str) -> Callable[[Props, Any], None]:
    return lambda props, proto: props.__setitem__(key, value)


def drop(key: str) -> Callable[[Props, Any], None]:
    return lambda props, proto: props.pop(key)


def replace_initializer(name: str, array: np.ndarray) -> Callable[[Props, Any], None]:
    def change(props: Props, proto: Any) -> None:
        old = next(t for t in proto.graph.initializer if t.name == name)
        proto.graph.initializer.remove(old)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))

    return change


def rename_initializer(name: str) -> Callable[[Props, Any], None]:
    def change(props: Props, proto: Any) -> None:
        next(t for t in proto.graph.initializer if t.name == name).name = "elsewhere"

    return change


def inline(parts: dict[str, Any]) -> Callable[[Props, Any], None]:
    def edit(table: list[dict[str, Any]]) -> None:
        entry(table, NORM).pop("constants")
        entry(table, NORM)["inline"] = parts

    return weights(edit)


def uneven(props: Props, proto: Any) -> None:
    inline({"data": ""})(props, proto)
    weights(lambda t: entry(t, NORM).update(encoding="Q4_0", shape=[40]))(props, proto)


def wider(props: Props, proto: Any) -> None:
    config = json.loads(props["halfbyte.config"])
    props["halfbyte.config"] = json.dumps({**config, "hidden_size": 128})


LIMIT = 1 << 20
SPACES = zlib.compress(b" " * (LIMIT + 9))
BOMB = metadata.COMPRESSED + base64.b64encode(SPACES).decode()
CUT = metadata.COMPRESSED + base64.b64encode(b"x\x9c").decode()
CASES: dict[str, tuple[Callable[[Props, Any], None], str]] = {
    "01 no config": (drop("halfbyte.config"), "lacks 'halfbyte.config'"),
    "02 config is no JSON": (put("halfbyte.config", "{"), "halfbyte.config"),
    "03 config is a list": (put("halfbyte.config", "[1]"), "no JSON object"),
    "04 config of another size": (wider, "required by the config"),
    "05 weights are an object": (put("halfbyte.weights", "{}"), "no list"),
    "06 a weight lacks keys": (weights(lambda t: t[0].pop("shape")), "lacks keys"),
    "07 a weight twice": (weights(lambda t: t.append(t[0])), "stands twice"),
    "08 a negative dimension": (weights(lambda t: t[0].update(shape=[-1, 64])), "bad name"),
    "09 an unknown role": (weights(lambda t: t[0].update(role="heart")), "role 'heart'"),
    "10 a negative layer": (weights(lambda t: t[0].update(layer=-1)), "layer -1"),
    "11 constants missing": (weights(lambda t: t[0].pop("constants")), "names no constants"),
    "12 an unknown style": (weights(lambda t: entry(t, QUERY).update(style="odd")), "style 'odd'"),
    "13 an unknown constant": (
        weights(lambda t: entry(t, QUERY)["constants"].update(codes="nowhere")),
        "'nowhere', codes of weight",
    ),
    "14 no constant for the scales": (
        weights(lambda t: entry(t, QUERY)["constants"].pop("scale")),
        "scale of weight",
    ),
    "15 another encoding": (
        weights(lambda t: entry(t, QUERY).update(encoding="Q8_0")),
        "of weight 'model.layers.0.self_attn.q_proj.weight'",
    ),
    "16 another shape": (weights(lambda t: entry(t, NORM).update(shape=[32])), "must be float32"),
    "17 the constant has another dtype": (
        replace_initializer(NORM, np.zeros(64, np.float16)), "must be float32 [1, 64]",
    ),
    "18 the constant is shorter": (
        replace_initializer(NORM, np.zeros(32, np.float32)), "must be float32 [1, 64]",
    ),
    "19 the constant is gone": (rename_initializer(NORM), "is missing"),
    "20 a weight is left out": (weights(lambda t: t.remove(entry(t, QUERY))), "missing"),
    "21 inline bytes of another length": (inline({"data": "AAAA"}), "bad data"),
    "22 inline bytes that are none": (inline({"data": 7}), "bad data"),
    "23 inline parts that do not exist": (inline({"codes": ""}), "other parts"),
    "24 compressed text that is none": (
        put("halfbyte.config", metadata.COMPRESSED + "!!"), "unpacked",
    ),
    "25 compressed text cut off": (put("halfbyte.config", CUT), "unpacked"),
    "26 a text that explodes": (put("halfbyte.config", BOMB), "unpacked"),
    "27 a tokenizer that is none": (put("halfbyte.tokenizer", "[]"), "tokenizer"),
    "28 a generation config that is none": (
        put("halfbyte.generation_config", "3"), "no JSON object",
    ),
    "29 rows that do not divide into blocks": (uneven, "do not divide"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_hostile_metadata(name, written, tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "LARGEST_TEXT", LIMIT)
    change, words = CASES[name]
    with pytest.raises(FormatError) as caught:
        read_model(changed(written, tmp_path, change))
    assert words in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("halfbyte.version", "2"), "upgrade halfbyte"),
        (put("halfbyte.config", '{"model_type":"unheard"}'), "unheard"),
        (weights(lambda t: entry(t, QUERY).update(encoding="Q9_9")), "Q9_9"),
    ],
)
def test_what_a_later_version_wrote_is_unsupported(change, words, written, tmp_path):
    with pytest.raises(UnsupportedError, match=words):
        read_model(changed(written, tmp_path, change))


def test_without_our_metadata_it_is_a_graph(written, tmp_path):
    def strip(props: Props, proto: Any) -> None:
        props.clear()

    found = read_model(changed(written, tmp_path, strip))
    assert not found.architecture and found.graph.nodes


def test_long_texts_are_compressed_and_come_back():
    text = "äöü\ud800" * metadata.COMPRESS_BYTES
    packed = metadata._packed(text)
    assert packed.startswith(metadata.COMPRESSED) and len(packed) < len(text) / 50
    assert metadata._unpacked(packed, Path("m.onnx"), "x") == text
    assert metadata._packed("short") == "short"


def test_a_large_weight_outside_the_graph_is_refused():
    from halfbyte.ir.tensor import tensor_from_array

    tensor = tensor_from_array("stray", np.zeros((1024, 512), np.float32))
    with pytest.raises(HalfbyteError, match="outside the graph"):
        metadata._entry("stray", tensor, None)
