"""A server on this machine that speaks as much of the Hugging Face hub's protocol as a download or an upload needs."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves the files of a repository, with faults on demand.

    Attributes:
        files: Content by path in the repository.
        others: The same of other repositories, by name.
        stated: What the hub states instead of the truth: path -> (sha256, size).
        status: Answered to everything when set.
        cut: Paths whose first GET breaks off half-way.
        requests: ``METHOD path`` and the range asked for.
        small: Patterns of paths that are kept in git, of which the hub states git's hash and no SHA-256.
        is_private: Whether only the owner may read the repository.
        is_there: Whether the repository has been made.
        token: What an upload has to bring; None lets everybody write.
        commits: Titles of what was uploaded.
    """

    daemon_threads = True

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository = repository
        self.files = files
        self.others: dict[str, dict[str, bytes]] = {}
        self.stated: dict[str, tuple[str, int]] = {}
        self.status: HTTPStatus | None = None
        self.cut: set[str] = set()
        self.requests: list[tuple[str, str | None]] = []
        self.small: tuple[str, ...] = ()
        self.is_private = False
        self.is_there = True
        self.token: str | None = None
        self.commits: list[str] = []
        self.blobs: dict[str, bytes] = {}

    def is_small(self, name: str) -> bool:
        """Whether git keeps a file itself."""
        return any(fnmatch.fnmatch(name, pattern) for pattern in self.small)

    def hash_of(self, name: str, content: bytes) -> str:
        """What the hub states of a file: SHA-256, or git's SHA-1 of one that git keeps."""
        if self.is_small(name):
            return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return hashlib.sha256(content).hexdigest()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve(repository: str, files: dict[str, bytes]) -> Iterator[HubServer]:
    """Run the server in a thread of its own."""
    with HubServer(repository, files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_POST(self) -> None:
        content = self._read_body()
        self.server.requests.append((f"POST {self.path}", None))
        if self.server.status is not None:
            self._refuse(self.server.status, None)
            return
        if self.server.token is not None and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._refuse(HTTPStatus.UNAUTHORIZED, None)
            return
        path, repository = unquote(self.path).partition("?")[0], self.server.repository
        if path == "/api/repos/create":
            self._create(json.loads(content))
        elif path == "/api/validate-yaml":
            self._answer_json({"errors": [], "warnings": []})
        elif path == f"/api/models/{repository}/preupload/main":
            self._answer_json({"files": [self._choose_mode(row["path"]) for row in json.loads(content)["files"]]})
        elif path == f"/{repository}.git/info/lfs/objects/batch":
            self._answer_json({"objects": [self._offer(row) for row in json.loads(content)["objects"]]})
        elif path == f"/api/models/{repository}/commit/main":
            self._commit([json.loads(line) for line in content.splitlines() if line.strip()])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")

    def do_PUT(self) -> None:
        content = self._read_body()
        self.server.requests.append((f"PUT {self.path}", None))
        self.server.blobs[hashlib.sha256(content).hexdigest()] = content
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _create(self, wanted: dict[str, Any]) -> None:
        address = f"{self.server.endpoint}/{self.server.repository}"
        if self.server.is_there:
            self._answer_json({"url": address, "error": "You already created this model repo"}, HTTPStatus.CONFLICT)
            return
        self.server.is_there = True
        self.server.is_private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self._answer_json({"url": address})

    def _choose_mode(self, name: str) -> dict[str, Any]:
        is_small = self.server.is_small(name)
        return {"path": name, "uploadMode": "regular" if is_small else "lfs", "shouldIgnore": False}

    def _offer(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["oid"] in self.server.blobs:
            return row
        return {**row, "actions": {"upload": {"href": f"{self.server.endpoint}/blobs/{row['oid']}"}}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "header":
                self.server.commits.append(value["summary"])
            elif kind == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                self.server.files[value["path"]] = self.server.blobs[value["oid"]]
            elif kind == "deletedFile":
                del self.server.files[value["path"]]
        address = f"{self.server.endpoint}/{self.server.repository}/commit/{COMMIT}"
        self._answer_json({"success": True, "commitOid": COMMIT, "commitUrl": address})

    def _answer_json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the output of tests clean."""

    def _answer(self, *, has_body: bool) -> None:
        wanted_range = self.headers.get("Range")
        self.server.requests.append((f"{self.command} {self.path}", wanted_range))
        repositories = {self.server.repository: self.server.files, **self.server.others}
        found = re.fullmatch(rf"/([^/]+/[^/]+)/resolve/(?:main|{COMMIT})/(.+)", unquote(self.path))
        if self.server.status is not None:
            self._refuse(self.server.status, None)
        elif found is None and unquote(self.path).partition("?")[0].startswith(f"/api/models/{self.server.repository}"):
            self._describe_repository()
        elif found is None or found[1] not in repositories:
            self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")
        elif found[2] not in repositories[found[1]]:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
        else:
            self._send(found[2], repositories[found[1]][found[2]], wanted_range, has_body=has_body)

    def _describe_repository(self) -> None:
        if not self.server.is_there:
            self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")
            return
        files = [
            {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
            for name, content in self.server.files.items()
        ]
        if "/tree/" in self.path:
            self._answer_json(files)
            return
        siblings = [{"rfilename": row["path"]} for row in files]
        named = {"id": self.server.repository, "modelId": self.server.repository, "sha": COMMIT}
        self._answer_json({**named, "private": self.server.is_private, "siblings": siblings})

    def _refuse(self, status: HTTPStatus, code: str | None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, name: str, content: bytes, wanted_range: str | None, *, has_body: bool) -> None:
        digest, num_bytes = self.server.stated.get(name, (self.server.hash_of(name, content), len(content)))
        start = int(wanted_range.removeprefix("bytes=").partition("-")[0]) if wanted_range else 0
        self.send_response(HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Accept-Ranges", "bytes")
        if self.server.is_small(name):
            self.send_header("ETag", f'"{digest}"')
        else:
            self.send_header("ETag", '"not-the-hash"')
            self.send_header("X-Linked-ETag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(num_bytes))
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if not has_body:
            return
        if name in self.server.cut and not start:
            self.server.cut.remove(name)
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content[start:])
