"""Hub ids against a local server that speaks the hub's API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

from halfbyte.converters import detect
from halfbyte.converters.format import ReadOptions
from halfbyte.converters.hugging_face.hub import (
    HubId,
    parse_hub_id,
    push,
    resolve,
    wanted_files,
)
from halfbyte.errors import HalfbyteError, UnsupportedError
from support.hub_server import COMMIT, TOKEN, HubServer, Repository, connected_hub

# huggingface-hub uploads with an argument that its own HTTP client deprecates
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

WEIGHTS = np.arange(64, dtype=np.float32).reshape(8, 8)


def safetensors_bytes() -> bytes:
    from safetensors.numpy import save

    return save({"w": WEIGHTS})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with connected_hub(tmp_path / "cache", monkeypatch) as server:
        yield server


@pytest.fixture
def model(hub: HubServer) -> Repository:
    found = Repository(
        {
            "config.json": json.dumps({"model_type": "unknown-kind"}).encode(),
            "model.safetensors": safetensors_bytes() + b"",
            "pytorch_model.bin": b"pickle" * 400,
            "onnx/model.onnx": b"onnx",
            "tf_model.h5": b"tensorflow",
            "README.md": b"card",
        }
    )
    hub.repositories["org/model"] = found
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubId("org/name")),
        ("org/name@v1.0", HubId("org/name", "", "v1.0")),
        ("org/name@refs/pr/1", HubId("org/name", "", "refs/pr/1")),
        ("org/name/a/b.gguf@dev", HubId("org/name", "a/b.gguf", "dev")),
        ("org/name/a.gguf", HubId("org/name", "a.gguf")),
        ("name", None),
        ("./org/name", None),
        ("/abs/name", None),
        ("~/name", None),
        ("org/../name", None),
        ("org/name/../x", None),
        ("org/name/", HubId("org/name")),
        ("", None),
    ],
)
def test_parse_hub_id(text: str, expected: HubId | None) -> None:
    assert parse_hub_id(text) == expected


def test_hub_id_as_text() -> None:
    assert str(HubId("o/n", "f.gguf", "r")) == "o/n/f.gguf@r"
    assert parse_hub_id("o/n@old", "new") == HubId("o/n", "", "new")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["config.json", "model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"],
            ["config.json", "model.safetensors"],
        ),
        (
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "consolidated.safetensors",
                "original/model.safetensors",
            ],
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ],
        ),
        (["weights.safetensors", "vocab.txt"], ["vocab.txt", "weights.safetensors"]),
        (
            [
                "additional_chat_templates/x.jinja",
                "additional_chat_templates/a/b.jinja",
                "model.safetensors",
                "README.md",
                "images/a.png",
            ],
            ["README.md", "additional_chat_templates/x.jinja", "model.safetensors"],
        ),
        (["pytorch_model.bin", "flax_model.msgpack"], ["pytorch_model.bin"]),
        (
            [
                "pytorch_model.bin.index.json",
                "pytorch_model-00001-of-00001.bin",
                "training_args.bin",
            ],
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
        ),
        (["README.md", "a.gguf"], ["a.gguf"]),
        (["a.gguf", "b.gguf"], []),
        (["model.onnx"], []),
    ],
)
def test_wanted_files(names: list[str], expected: list[str]) -> None:
    assert wanted_files(names) == expected


def test_local_path_wins(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("org/model") == Path("org/model")
    assert not hub.requests


def test_downloads_only_what_is_needed(hub: HubServer, model: Repository) -> None:
    folder = resolve("org/model")
    wanted = ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == wanted
    found = detect(folder).read(folder, ReadOptions())
    assert np.array_equal(found.weights["w"].numpy(), WEIGHTS)
    assert (found.provenance.source, found.provenance.revision) == ("org/model", COMMIT)
    assert hub.tokens() == {f"Bearer {TOKEN}"}


def test_second_time_comes_from_the_cache(hub: HubServer, model: Repository) -> None:
    first = resolve("org/model")
    before = hub.count("GET", "/resolve/")
    assert before == 3
    assert resolve("org/model") == first
    assert hub.count("GET", "/resolve/") == before


def test_revision(hub: HubServer, model: Repository) -> None:
    model.revisions = ("main", "v2", COMMIT)
    assert (resolve("org/model@v2") / "config.json").is_file()
    assert hub.count("GET", "/revision/v2") > 0
    assert (resolve("org/model", "v2") / "config.json").is_file()
    with pytest.raises(HalfbyteError, match="org/model@v3: the repository has no revision 'v3'"):
        resolve("org/model@v3")


def test_offline_uses_the_cache(
    hub: HubServer, model: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["org/gguf"] = Repository({"a.gguf": b"GGUF-content", "b.gguf": b"GGUF"})
    folder = resolve("org/model")
    file = resolve("org/gguf/a.gguf")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert resolve("org/model") == folder
    assert resolve("org/gguf/a.gguf") == file
    with pytest.raises(HalfbyteError, match="org/other: no such path here, not in the hub"):
        resolve("org/other")
    with pytest.raises(HalfbyteError, match=r"org/gguf/b\.gguf: no such path here, not in"):
        resolve("org/gguf/b.gguf")
    assert not hub.requests


def test_unreachable_hub_falls_back_to_the_cache(hub: HubServer, model: Repository) -> None:
    folder = resolve("org/model")
    model.refused = (500, "")
    assert resolve("org/model") == folder


@pytest.mark.parametrize("source", ["org/single", "org/single/model.gguf@main"])
def test_single_file_repositories(hub: HubServer, source: str) -> None:
    hub.repositories["org/single"] = Repository({"README.md": b"card", "model.gguf": b"GGUF" * 600})
    found = resolve(source)
    assert found.name == "model.gguf"
    assert found.read_bytes() == b"GGUF" * 600


def test_interrupted_download_is_resumed(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 8192)
    content = bytes(range(256)) * 400
    hub.repositories["org/big"] = Repository({"model.gguf": content})
    hub.cut_after["model.gguf"] = 40_000
    assert resolve("org/big/model.gguf").read_bytes() == content
    ranges = [r.headers.get("range") for r in hub.requests if r.method == "GET"]
    assert ranges[-2:] == [None, "bytes=32768-"]


@pytest.mark.parametrize(
    ("source", "refused", "message"),
    [
        ("org/absent", None, "org/absent: no such path here and no such repository"),
        ("org/model", (403, "GatedRepo"), "org/model: the repository is gated; accept its terms"),
        ("org/model", (401, "RepoNotFound"), "no such repository, or it is private"),
        ("org/model/absent.gguf", None, r"the repository has no file 'absent\.gguf'"),
    ],
)
def test_refusals(
    hub: HubServer,
    model: Repository,
    source: str,
    refused: tuple[int, str] | None,
    message: str,
) -> None:
    model.refused = refused
    with pytest.raises(HalfbyteError, match=message) as caught:
        resolve(source)
    assert "\n" not in str(caught.value)


def test_refused_token(hub: HubServer, model: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    model.refused = (401, "")
    monkeypatch.setattr(
        "support.hub_server._Handler._error",
        lambda self, status, code, message="": self._answer(
            401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"}
        ),
    )
    with pytest.raises(
        HalfbyteError, match=r"org/model: the hub refused the token \(401\); log in"
    ):
        resolve("org/model")


def test_several_models_in_a_repository(hub: HubServer) -> None:
    hub.repositories["org/many"] = Repository({"a.gguf": b"", "b.gguf": b""})
    with pytest.raises(
        HalfbyteError, match=r"2 models lie there \(a\.gguf, b\.gguf\).*many/a\.gguf"
    ):
        resolve("org/many")
    hub.repositories["org/none"] = Repository({"model.h5": b""})
    with pytest.raises(HalfbyteError, match="org/none: no weights there"):
        resolve("org/none")


def test_pickles_are_not_fetched_unless_allowed(hub: HubServer) -> None:
    hub.repositories["org/old"] = Repository({"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(UnsupportedError, match=r"org/old: a pickled .* --allow-pickle to read"):
        resolve("org/old", allow_pickle=False)
    assert not hub.count("GET", "/resolve/")
    assert (resolve("org/old") / "pytorch_model.bin").read_bytes() == b"x"


def test_gated_files(hub: HubServer, model: Repository) -> None:
    model.refused_files = (403, "GatedRepo")
    with pytest.raises(HalfbyteError, match="org/model: the repository is gated; accept its terms"):
        resolve("org/model")


def test_neither_path_nor_hub_id() -> None:
    with pytest.raises(HalfbyteError, match=r"\./x: no such file or folder, and not a hub id"):
        resolve("./x")


def test_push_folder(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w" * 5000)
    assert push(folder, "org/new") == f"{hub.url}/org/new"
    assert hub.repositories["org/new"].files == {
        "config.json": b"{}",
        "model.safetensors": b"w" * 5000,
    }
    create = next(r for r in hub.requests if r.path == "/api/repos/create")
    assert create.json()["name"] == "new"
    assert create.headers["authorization"] == f"Bearer {TOKEN}"
    commit = next(r for r in hub.requests if "/commit/" in r.path)
    assert json.loads(commit.body.splitlines()[0])["value"]["summary"] == "Upload out with halfbyte"
    assert hub.count("PUT", "/lfs/") == 1


def test_push_file_to_an_existing_repository(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/old"] = Repository({"kept.txt": b"kept"})
    (tmp_path / "model.gguf").write_bytes(b"GGUF" * 1000)
    push(tmp_path / "model.gguf", "org/old", message="a model")
    assert set(hub.repositories["org/old"].files) == {"kept.txt", "model.gguf"}


def test_push_refusals(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(HalfbyteError, match="onlyname: not a repository of the hub"):
        push(tmp_path / "model.gguf", "onlyname")
    with pytest.raises(HalfbyteError, match="no such file or folder to upload"):
        push(tmp_path / "absent", "org/x")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with pytest.raises(HalfbyteError, match="org/x: the hub refused the token") as caught:
        push(tmp_path / "model.gguf", "org/x")
    assert "HF_TOKEN" in str(caught.value)
    assert "org/x" not in hub.repositories


def test_environment_alone_chooses_the_server(
    hub: HubServer, model: Repository, tmp_path: Path
) -> None:
    script = (
        "import sys; from halfbyte.converters.hugging_face.hub import resolve, push\n"
        "folder = resolve('org/model'); print(folder); push(folder / 'config.json', 'org/copy')"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_other",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert str(tmp_path / "home") in done.stdout
    assert done.stderr == ""
    assert hub.repositories["org/copy"].files == {"config.json": model.files["config.json"]}
    assert hub.tokens() == {"Bearer hf_other"}
