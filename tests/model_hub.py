"""A model hub on this machine: as much of Hugging Face's and ModelScope's protocol as a download needs, with faults."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", "tokenizer.json")  # stored as LFS: their sha256 is published
NAME = "acme/Tiny-3"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a model folder, with things beside them that nobody should fetch."""
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    found.pop("base.json", None)
    return {
        **found,
        "pytorch_model.bin": b"pickle",
        "modeling_tiny.py": b"import os",
        "onnx/model.safetensors": b"other",
    }


@dataclass
class Request:
    """What was asked for."""

    method: str
    host: str
    path: str
    range: str
    authorization: str


@dataclass
class ModelHub:
    """One repository; `commits` maps a commit to its files, `branches` a branch to its commit.

    `faults` maps a file's name to what befalls its next requests, in order: `cut N` (the line breaks behind N
    bytes), `wrong` (other bytes of the same length), `whole` (a range is ignored), or a status such as `503`.
    `token`: what a request must carry to get files (and, when `private`, the list).
    """

    commits: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    token: str = ""
    private: bool = False
    moves_large_files: bool = False  # to an address of another host, as the hub does
    requests: list[Request] = field(default_factory=list)

    def start(self) -> ModelHub:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def publish(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A new commit at the head of a branch."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def asked(self, name: str) -> list[Request]:
        """The requests for the content of one file."""
        return [
            r for r in self.requests if r.method == "GET" and r.path.endswith(name) and "/api/models/" not in r.path
        ]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        headers = handler.headers
        told = [headers.get(name, "") for name in ("Host", "Range", "Authorization")]
        self.requests.append(Request(handler.command, told[0], handler.path, told[1], told[2]))
        address = urlsplit(handler.path)
        path, query = unquote(address.path), parse_qs(address.query)
        allowed = not self.token or told[2] == f"Bearer {self.token}"
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._hub_list(handler, match[1], match[2], allowed)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._hub_file(handler, match[1], match[2], match[3], allowed)
        elif match := re.fullmatch(r"/cdn/(\w+)/(.+)", path):
            self._content(handler, match[2], self.commits[match[1]][match[2]])
        elif path == f"/api/v1/models/{NAME}/repo/files":
            self._modelscope_list(handler, query["Revision"][0])
        elif path == f"/api/v1/models/{NAME}/repo":
            commit = self._commit(query["Revision"][0])
            self._content(handler, query["FilePath"][0], self.commits[commit or ""][query["FilePath"][0]])
        else:
            self._send(handler, 404, b"{}")

    def _commit(self, revision: str) -> str | None:
        revision = {"master": "main"}.get(revision, revision)
        return revision if revision in self.commits else self.branches.get(revision)

    def _hub_list(self, handler: BaseHTTPRequestHandler, name: str, revision: str, allowed: bool) -> None:
        commit = self._commit(revision)
        if fault := self._fault("list"):
            return self._send(handler, int(fault), b"{}")
        if name != NAME or (self.private and not allowed):
            return self._send(handler, 401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if commit is None:
            return self._send(handler, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for path, content in self.commits[commit].items():
            lfs = {"size": len(content), "sha256": sha256(content), "pointerSize": 134}
            large = {"lfs": lfs} if path.endswith(LARGE) else {}
            siblings.append({"rfilename": path, "size": len(content), "blobId": blob_id(content), **large})
        settings = json.loads(self.commits[commit]["config.json"])
        told = {"id": NAME, "sha": commit, "siblings": siblings, "config": {"architectures": settings["architectures"]}}
        self._send(handler, 200, json.dumps({**told, "modelId": NAME, "private": self.private, "tags": []}).encode())

    def _hub_file(self, handler: BaseHTTPRequestHandler, name: str, revision: str, path: str, allowed: bool) -> None:
        commit = self._commit(revision)
        if name != NAME or commit is None or path not in self.commits[commit]:
            return self._send(handler, 404, b"")
        if not allowed:
            return self._send(handler, 401, b"", {"X-Error-Code": "GatedRepo"})
        if self.moves_large_files and path.endswith(LARGE):
            there = f"http://localhost:{self.server.server_port}/cdn/{commit}/{path}"
            return self._send(handler, 302, b"", {"Location": there, "X-Repo-Commit": commit})
        self._content(handler, path, self.commits[commit][path])

    def _modelscope_list(self, handler: BaseHTTPRequestHandler, revision: str) -> None:
        commit = self._commit(revision)
        if fault := self._fault("list"):
            return self._send(handler, int(fault), b"{}")
        files: Any = None  # an unknown revision is no error there
        if commit is not None:
            files = [
                {"Type": "blob", "Path": path, "Size": len(content), "Sha256": sha256(content), "Revision": commit}
                for path, content in self.commits[commit].items()
            ]
            files.append({"Type": "tree", "Path": "onnx", "Size": 0})
        data = {"Files": files, "LatestCommitter": {"Id": "", "ShortId": commit[:8]} if commit else None}
        self._send(handler, 200, json.dumps({"Code": 200, "Success": True, "Data": data}).encode())

    def _content(self, handler: BaseHTTPRequestHandler, path: str, content: bytes) -> None:
        fault = self._fault(path) if handler.command == "GET" else ""
        if fault.isdigit():
            return self._send(handler, int(fault), b"")
        if fault == "wrong":
            content = bytes(255 - byte for byte in content)
        headers, status = {"Accept-Ranges": "bytes"}, 200
        match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if match and fault != "whole":
            begin, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            content = content[begin:]
        cut = int(fault.removeprefix("cut ")) if fault.startswith("cut ") else None
        self._send(handler, status, content, headers, cut)

    def _fault(self, path: str) -> str:
        waiting = self.faults.get(path) or [""]
        return waiting.pop(0)

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, content: bytes, headers: Mapping[str, str] | None = None,
        cut: int | None = None,
    ) -> None:  # fmt: skip
        handler.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(content if cut is None else content[:cut])
            handler.wfile.flush()
        if cut is not None:
            handler.close_connection = True
