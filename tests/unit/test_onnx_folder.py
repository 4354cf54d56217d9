"""Folders that hold ONNX models: which file it is, and which format the folder has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from halfbyte.converters import FORMATS, detect, get_format, read
from halfbyte.converters.onnx.folder import holds_onnx, model_file, onnx_files, text_folder
from halfbyte.errors import FormatError
from halfbyte.runtime.session import Session
from support.onnx_wire import external, floats, graph, model, node

CONFIG = json.dumps({"model_type": "vit"})


def add_model(folder: Path, name: str = "model.onnx", factor: float = 2.0) -> Path:
    """Write y = x * w, with w in `NAME_data`."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = external("w", [2], location=f"{path.name}_data")
    path.write_bytes(model(graph([node("Mul", ["x", "w"], ["y"])], [stored])))
    path.with_name(f"{path.name}_data").write_bytes(floats(factor, factor))
    return path


def genai(filename: object) -> str:
    return json.dumps({"model": {"type": "llama", "decoder": {"filename": filename}}})


def answer(folder: Path) -> list[float]:
    session = Session(read(folder))
    found = session.run({"x": np.ones(2, np.float32)})
    return [float(v) for v in found["y"]]


@pytest.mark.parametrize("name", ["model.onnx", "onnx/model.onnx", "decoder_model.onnx"])
@pytest.mark.parametrize("has_config", [True, False])
def test_the_only_model_of_a_folder(tmp_path: Path, name: str, has_config: bool) -> None:
    path = add_model(tmp_path, name)
    if has_config:
        (tmp_path / "config.json").write_text(CONFIG)
    assert detect(tmp_path).name == "onnx"
    assert model_file(tmp_path) == path
    assert model_file(path) == path
    assert answer(tmp_path) == [2.0, 2.0]
    detect(tmp_path).verify_content(tmp_path, 1)


def test_several_models(tmp_path: Path) -> None:
    add_model(tmp_path, "onnx/model.onnx")
    add_model(tmp_path, "onnx/model_int8.onnx", 3.0)
    (tmp_path / "config.json").write_text(CONFIG)
    with pytest.raises(
        FormatError,
        match=r"2 ONNX models lie there \(onnx/model\.onnx, onnx/model_int8\.onnx\), one was "
        "required; name the file",
    ):
        read(tmp_path)
    assert answer(tmp_path / "onnx/model_int8.onnx") == [3.0, 3.0]
    for index in range(9):
        add_model(tmp_path, f"m{index}.onnx")
    with pytest.raises(FormatError, match=r"11 ONNX models lie there \(m0.*m7\.onnx, \.\.\.\)"):
        model_file(tmp_path)


def test_genai_config_names_the_model(tmp_path: Path) -> None:
    add_model(tmp_path, "a.onnx")
    named = add_model(tmp_path, "b.onnx", 5.0)
    (tmp_path / "genai_config.json").write_text(genai("b.onnx"))
    assert model_file(tmp_path) == named
    assert answer(tmp_path) == [5.0, 5.0]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (genai("absent.onnx"), "names the model 'absent.onnx', which is not there"),
        (genai("../model.onnx"), r"file name '\.\./model\.onnx' leaves the folder"),
        (genai("/etc/passwd"), "leaves the folder"),
        (genai(7), "has no model.decoder.filename"),
        (genai(""), "has no model.decoder.filename"),
        ('{"model": []}', "has no model.decoder.filename"),
        ("[]", "a JSON object was required"),
        ("{", "is not JSON"),
        ("[" * 100_000, "nested too deeply|is not JSON"),
    ],
)
def test_hostile_genai_configs(tmp_path: Path, content: str, rule: str) -> None:
    add_model(tmp_path)
    (tmp_path / "genai_config.json").write_text(content)
    assert detect(tmp_path).name == "onnx"
    with pytest.raises(FormatError, match=rule):
        read(tmp_path)


def test_a_huge_genai_config_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "genai_config.json").open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(FormatError, match="it is damaged"):
        model_file(tmp_path)


def test_a_checkpoint_beside_onnx_files_is_hugging_face(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    add_model(tmp_path, "onnx/model.onnx")
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    for config in (False, True):
        if config:
            (tmp_path / "config.json").write_text(CONFIG)
        assert detect(tmp_path).name == "hf"
        assert list(read(tmp_path).weights) == ["w"]


def test_folders_without_models(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").mkdir()
    (tmp_path / "y.onnx").symlink_to(tmp_path / "gone")
    assert onnx_files(tmp_path) == []
    assert not holds_onnx(tmp_path)
    with pytest.raises(FormatError, match="none of the known formats"):
        detect(tmp_path)
    (tmp_path / "config.json").write_text(CONFIG)
    assert detect(tmp_path).name == "hf"


def test_each_path_is_of_one_format(tmp_path: Path) -> None:
    """hf, which stands first, leaves folders of ONNX files to onnx: the order decides nothing."""
    add_model(tmp_path)
    (tmp_path / "config.json").write_text(CONFIG)
    assert list(FORMATS).index("hf") < list(FORMATS).index("onnx")
    claimed = [name for name in FORMATS if get_format(name).detect(tmp_path)]
    assert claimed == ["onnx"]


def test_hub_cache_layout(tmp_path: Path) -> None:
    """Model and data are links into one folder of blobs."""
    made = add_model(tmp_path / "made")
    snapshot, blobs = tmp_path / "models--o--n/snapshots/1/onnx", tmp_path / "models--o--n/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for index, path in enumerate((made, made.with_name("model.onnx_data"))):
        shutil.copy(path, blobs / str(index))
        (snapshot / path.name).symlink_to(f"../../../blobs/{index}")
    assert answer(snapshot.parent) == [2.0, 2.0]


def test_tokenizer_above_the_folder_onnx(tmp_path: Path) -> None:
    inner = tmp_path / "onnx" / "model.onnx"
    inner.parent.mkdir()
    assert text_folder(inner) == inner.parent
    (tmp_path / "tokenizer.json").write_text("{}")
    assert text_folder(inner) == tmp_path
    (inner.parent / "tokenizer.json").write_text("{}")
    assert text_folder(inner) == inner.parent
    assert text_folder(tmp_path / "model.onnx") == tmp_path
