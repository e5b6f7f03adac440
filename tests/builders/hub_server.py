"""A server on this machine that speaks as much of the Hugging Face hub's protocol as a download needs."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves the files of a repository, with faults on demand.

    Attributes:
        files: Content by path in the repository.
        others: The same of other repositories, by name.
        kept_in_git: Paths of small files, of which the hub states git's hash and no SHA-256.
        stated: What the hub states instead of the truth: path -> (sha256, size).
        status: Answered to everything when set.
        cut: Paths whose first GET breaks off half-way.
        requests: ``METHOD path`` and the range asked for.
    """

    daemon_threads = True

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository = repository
        self.files = files
        self.others: dict[str, dict[str, bytes]] = {}
        self.kept_in_git: set[str] = set()
        self.stated: dict[str, tuple[str, int]] = {}
        self.status: HTTPStatus | None = None
        self.cut: set[str] = set()
        self.requests: list[tuple[str, str | None]] = []

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

    def log_message(self, *_: object) -> None:
        """Keep the output of tests clean."""

    def _answer(self, *, has_body: bool) -> None:
        wanted_range = self.headers.get("Range")
        self.server.requests.append((f"{self.command} {self.path}", wanted_range))
        repositories = {self.server.repository: self.server.files, **self.server.others}
        found = re.fullmatch(rf"/([^/]+/[^/]+)/resolve/(?:main|{COMMIT})/(.+)", unquote(self.path))
        if self.server.status is not None:
            self._refuse(self.server.status, None)
        elif found is None or found[1] not in repositories:
            self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")
        elif found[2] not in repositories[found[1]]:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
        else:
            self._send(found[2], repositories[found[1]][found[2]], wanted_range, has_body=has_body)

    def _refuse(self, status: HTTPStatus, code: str | None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, name: str, content: bytes, wanted_range: str | None, *, has_body: bool) -> None:
        sha256, num_bytes = self.server.stated.get(name, (hashlib.sha256(content).hexdigest(), len(content)))
        start = int(wanted_range.removeprefix("bytes=").partition("-")[0]) if wanted_range else 0
        self.send_response(HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Accept-Ranges", "bytes")
        if name in self.server.kept_in_git:
            head = f"blob {len(content)}\0".encode()
            self.send_header("ETag", f'"{hashlib.sha1(head + content).hexdigest()}"')
        else:
            self.send_header("ETag", '"not-the-hash"')
            self.send_header("X-Linked-ETag", f'"{sha256}"')
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
