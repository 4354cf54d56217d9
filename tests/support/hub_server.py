"""A small Hugging Face hub on localhost, for tests.

Speaks the parts of the hub's API that downloads and uploads use: model info, tree, resolve (HEAD,
GET with Range), repository creation, preupload, LFS batch and objects, commits in ndjson. It keeps
repositories in memory, records every request and can cut a download short once.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_BYTES = 1000
TOKEN = "hf_testtoken"


@dataclass
class Repository:
    """Files by name; `refused` is an (HTTP status, X-Error-Code) that answers every request.

    `refused_files` answers downloads only.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main", COMMIT)
    refused: tuple[int, str] | None = None
    refused_files: tuple[int, str] | None = None


@dataclass(frozen=True)
class Request:
    """A request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


class HubServer:
    """Repositories, recorded requests, and the address to put into HF_ENDPOINT."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.objects: dict[str, bytes] = {}
        self.cut_after: dict[str, int] = {}
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(0.02,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def tokens(self) -> set[str]:
        """Return the authorization headers of requests about repositories."""
        own = [r for r in self.requests if any(name in r.path for name in self.repositories)]
        return {r.headers.get("authorization", "") for r in own}

    def count(self, method: str, part: str = "") -> int:
        """Return how many requests had this method and this text in their path."""
        return sum(r.method == method and part in r.path for r in self.requests)


@contextlib.contextmanager
def running_hub() -> Iterator[HubServer]:
    """Yield a hub that serves until the block ends."""
    hub = HubServer()
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()


@contextlib.contextmanager
def connected_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Yield a hub that huggingface-hub talks to in this process, with a cache of its own."""
    constants = huggingface_hub.constants
    with running_hub() as server:
        address = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def git_blob_id(content: bytes) -> str:
    """Return git's name of a file content, the hub's etag for small files."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: Any) -> None:
        pass

    def _take(self) -> tuple[str, bytes]:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = self._chunked()
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server_hub.requests.append(Request(self.command, path, headers, body))
        return path, body

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, document: Any, status: int = 200) -> None:
        raw = json.dumps(document).encode()
        self._answer(status, raw, {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message or code}
        raw = json.dumps({"error": message or code}).encode()
        self._answer(status, raw, {name: v for name, v in headers.items() if v})

    def _repository(self, name: str) -> Repository | None:
        found = self.server_hub.repositories.get(name)
        if found is None:
            self._error(404, "RepoNotFound", "Repository not found")
        elif found.refused is not None:
            self._error(*found.refused)
        else:
            return found
        return None

    def do_GET(self) -> None:
        path, _ = self._take()
        steps = path.strip("/").split("/")
        if steps[0] == "datasets":
            steps = steps[1:]
        if steps[:2] in (["api", "models"], ["api", "datasets"]):
            self._api(steps[2:])
        elif len(steps) > 4 and steps[2] == "resolve":
            self._resolve("/".join(steps[:2]), steps[3], "/".join(steps[4:]))
        else:
            self._error(404, "", "no such page")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _api(self, steps: list[str]) -> None:
        repository = self._repository("/".join(steps[:2]))
        if repository is None:
            return
        what, revision = (*steps[2:4], "main")[:2] if len(steps) > 2 else ("revision", "main")
        if revision not in repository.revisions:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif what == "tree":
            self._json([_tree_entry(n, raw) for n, raw in repository.files.items()])
        else:
            siblings = [{"rfilename": name} for name in repository.files]
            self._json({"id": "/".join(steps[:2]), "sha": COMMIT, "siblings": siblings})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        if revision not in repository.revisions:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        if repository.refused_files is not None:
            self._error(*repository.refused_files)
            return
        if file not in repository.files:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = repository.files[file]
        headers = {
            "ETag": f'"{_etag(content)}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        wanted = self.headers.get("Range")
        if wanted is None or self.command == "HEAD":
            self._send_file(file, content, 200, {**headers, "Content-Length": str(len(content))})
            return
        start = int(wanted.removeprefix("bytes=").split("-")[0])
        rest = content[start:]
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers |= {"Content-Range": span, "Content-Length": str(len(rest))}
        self._send_file(file, rest, 206, headers)

    def _send_file(self, file: str, content: bytes, status: int, headers: dict[str, str]) -> None:
        cut = self.server_hub.cut_after
        if self.command == "GET" and file in cut:
            content = content[: cut.pop(file)]
            self.close_connection = True
        self._answer(status, content, headers)

    def do_POST(self) -> None:
        path, body = self._take()
        steps = path.strip("/").split("/")
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif "preupload" in steps:
            files = [_upload_mode(entry) for entry in json.loads(body)["files"]]
            self._json({"files": files})
        elif "commit" in steps:
            self._commit("/".join(steps[2:4]), body)
        else:
            self._error(404, "", "no such page")

    def do_PUT(self) -> None:
        path, body = self._take()
        self.server_hub.objects[path.rsplit("/", 1)[-1]] = body
        self._answer(200)

    def _create(self, request: dict[str, Any]) -> None:
        if "authorization" not in {name.lower() for name in self.headers}:
            self._error(401, "", "Invalid username or password.")
            return
        name = f"{request['organization']}/{request['name']}"
        exists = name in self.server_hub.repositories
        self.server_hub.repositories.setdefault(name, Repository())
        self._json({"url": f"{self.server_hub.url}/{name}", "name": name}, 409 if exists else 200)

    def _batch(self, request: dict[str, Any]) -> None:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.server_hub.url}/lfs/{entry['oid']}"}}}
            for entry in request["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.server_hub.repositories[name]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.server_hub.objects[value["oid"]]
        url = f"{self.server_hub.url}/{name}/commit/{COMMIT}"
        self._json({"commitUrl": url, "commitOid": COMMIT, "success": True})


def _etag(content: bytes) -> str:
    big = len(content) > LFS_BYTES
    return hashlib.sha256(content).hexdigest() if big else git_blob_id(content)


def _tree_entry(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": name,
        "size": len(content),
        "oid": git_blob_id(content),
    }
    if len(content) > LFS_BYTES:
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
    return entry


def _upload_mode(entry: dict[str, Any]) -> dict[str, Any]:
    mode = "lfs" if entry["size"] > LFS_BYTES else "regular"
    return {"path": entry["path"], "uploadMode": mode, "shouldIgnore": False}
