"""ONNX files on the hub: what is fetched, and that it loads from the cache of links."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

from halfbyte.converters import detect, read
from halfbyte.converters.hugging_face.hub import resolve
from halfbyte.errors import FormatError, HalfbyteError
from halfbyte.pipeline import inspect
from halfbyte.runtime.session import Session
from support.hub_server import COMMIT, HubServer, Repository, connected_hub
from support.onnx_wire import (
    A_GRAPH,
    A_TENSOR,
    attribute,
    blob,
    external,
    floats,
    graph,
    model,
    node,
    value,
)

DATA = floats(*([2.0] * 2)) + bytes(4096)
TEXTS = {"config.json": b'{"model_type": "vit"}', "tokenizer_config.json": b"{}"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with connected_hub(tmp_path / "cache", monkeypatch) as server:
        yield server


def scaled(location: str, pad: int = 0) -> bytes:
    """Return y = x * w with w in another file; large files are kept apart by the hub."""
    content = graph([node("Mul", ["x", "w"], ["y"])], [external("w", [2], location=location)])
    return model(content, blob(6, "-" * pad))


def names(path: Path) -> list[str]:
    """Return the files of the snapshot that a path lies in."""
    root = next(parent for parent in (path, *path.parents) if parent.name == COMMIT)
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir())


def answer(path: Path) -> list[float]:
    found = Session(read(path)).run({"x": np.ones(2, np.float32)})
    return [float(v) for v in found["y"]]


@pytest.mark.parametrize("data", ["model.onnx_data", "model.onnx.data", "weights/part 1[a].bin"])
@pytest.mark.parametrize("folder", ["", "onnx/"])
@pytest.mark.parametrize("is_named", [True, False])
def test_model_with_its_data(hub: HubServer, data: str, folder: str, is_named: bool) -> None:
    texts = {"README.md": b"card", **TEXTS}
    files = {f"{folder}model.onnx": scaled(data, 2000), f"{folder}{data}": DATA, **texts}
    others = {f"{folder}other.bin": b"", "tf_model.h5": b"x"}
    hub.repositories["org/export"] = Repository({**files, **others})
    path = resolve("org/export" + (f"/{folder}model.onnx" if is_named else ""))
    assert names(path) == sorted(files)
    assert path.is_symlink()
    assert detect(path).name == "onnx"
    assert answer(path) == [2.0, 2.0]


def test_one_of_several_is_named(hub: HubServer) -> None:
    files = {"onnx/a.onnx": scaled("a.data"), "onnx/a.data": DATA, "onnx/b.onnx": scaled("b.data")}
    hub.repositories["org/many"] = Repository({**files, "onnx/b.data": DATA, **TEXTS})
    message = (
        r"org/many: 2 ONNX models lie there \(onnx/a\.onnx, onnx/b\.onnx\), one was required; "
        r"name it as org/many/onnx/a\.onnx"
    )
    with pytest.raises(HalfbyteError, match=message):
        resolve("org/many")
    path = resolve("org/many/onnx/a.onnx@main")
    assert names(path) == sorted(["onnx/a.data", "onnx/a.onnx", *TEXTS])
    assert answer(path.parents[1]) == [2.0, 2.0]
    assert inspect("org/many/onnx/a.onnx").problems == []


def test_genai_config_names_the_model(hub: HubServer) -> None:
    config = {"model": {"decoder": {"filename": "b.onnx"}}}
    files = {"a.onnx": scaled("a.data"), "b.onnx": scaled("b.onnx.data"), "b.onnx.data": DATA}
    hub.repositories["org/genai"] = Repository(
        {**files, "genai_config.json": json.dumps(config).encode()}
    )
    path = resolve("org/genai")
    assert names(path) == ["b.onnx", "b.onnx.data", "genai_config.json"]
    assert answer(path) == [2.0, 2.0]
    config["model"]["decoder"]["filename"] = "c.onnx"
    hub.repositories["org/broken"] = Repository(
        {**files, "genai_config.json": json.dumps(config).encode()}
    )
    with pytest.raises(FormatError, match=r"names the model 'c\.onnx', which the repository lacks"):
        resolve("org/broken")


def test_weights_of_a_checkpoint_and_single_files_win(hub: HubServer) -> None:
    both = {"model.onnx": scaled("d"), "d": DATA, "a.gguf": b"GGUF" * 600}
    hub.repositories["org/both"] = Repository(both)
    assert resolve("org/both").name == "a.gguf"
    hub.repositories["org/mixed"] = Repository({**both, "b.gguf": b"GGUF"})
    with pytest.raises(HalfbyteError, match=r"2 models lie there \(a\.gguf, b\.gguf\)"):
        resolve("org/mixed")


def test_data_of_constants_in_branches(hub: HubServer) -> None:
    held = attribute("value", A_TENSOR, blob(5, external("", [2], location="in")))
    inner = graph([node("Constant", [], ["c"], held)], (), (), [value("c")])
    branches = [attribute(f"{k}_branch", A_GRAPH, blob(6, inner)) for k in ("then", "else")]
    content = graph([node("If", ["x"], ["y"], *branches)], (), [value("x", (), 9)])
    hub.repositories["org/if"] = Repository({"m.onnx": model(content), "in": DATA, "out": DATA})
    path = resolve("org/if")
    assert names(path) == ["in", "m.onnx"]


@pytest.mark.parametrize("location", ["../x", "/etc/passwd", "a/../../x", "*", "absent", ""])
def test_hostile_locations_fetch_nothing(hub: HubServer, location: str) -> None:
    files = {"onnx/model.onnx": scaled(location), "x": DATA, "onnx/y": DATA}
    hub.repositories["org/bad"] = Repository(files)
    path = resolve("org/bad/onnx/model.onnx")
    assert "onnx/y" not in names(path)
    with pytest.raises(FormatError):
        read(path)


def test_a_file_that_is_no_model(hub: HubServer) -> None:
    hub.repositories["org/bad"] = Repository({"model.onnx": b"version https://git-lfs"})
    path = resolve("org/bad")
    with pytest.raises(FormatError, match="none of the known formats"):
        detect(path)


def test_offline_from_the_cache(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {"onnx/model.onnx": scaled("model.onnx_data"), "onnx/model.onnx_data": DATA, **TEXTS}
    hub.repositories["org/export"] = Repository(files)
    path = resolve("org/export")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert resolve("org/export/onnx/model.onnx") == path
    assert answer(resolve("org/export")) == [2.0, 2.0]
    with pytest.raises(HalfbyteError, match=r"org/export/onnx/b\.onnx: no such path here, not in"):
        resolve("org/export/onnx/b.onnx")
    assert not hub.requests
