"""A server on the loopback that speaks as Hugging Face's hub does, with a second one for large files.

Large files are answered with a redirect to the second server, as the hub does; both note what they are asked,
and can be made to fail.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LARGE = 10_000
"""From so many bytes on a file lies in Git LFS."""


@dataclass
class Faults:
    """What goes wrong. All of it holds until it is changed."""

    status: int = 0
    """Of every answer of the hub itself."""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers with a large file breaks off."""
    damages: bool = False
    ignores_ranges: bool = False
    rate_limited: int = 0
    """So many of the next answers with a large file are 429, with Retry-After: 0."""


@dataclass(frozen=True)
class Asked:
    """One request, as a server saw it."""

    method: str
    path: str
    range: str
    token: str
    is_large: bool


@dataclass
class FakeHub:
    """Repositories by name, each a dictionary of files."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: dict[str, str] = field(default_factory=dict)
    """The token that may read a repository."""
    tokens: set[str] = field(default_factory=set)
    """That are known."""
    faults: Faults = field(default_factory=Faults)
    asked: list[Asked] = field(default_factory=list)
    endpoint: str = ""
    large_files: str = ""

    def add(self, name: str, folder: Path) -> None:
        """Serve what lies in a folder, or one file, as a repository."""
        files = [folder] if folder.is_file() else [path for path in folder.rglob("*") if path.is_file()]
        top = folder.parent if folder.is_file() else folder
        self.repositories[name] = {str(path.relative_to(top)): path.read_bytes() for path in files}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Run both servers on free ports."""
    servers = [
        ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, is_large=large)) for large in (False, True)
    ]
    hub.endpoint, hub.large_files = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def _handler(hub: FakeHub, *, is_large: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            hub.asked.append(Asked(self.command, self.path, self.headers.get("Range", ""), token, is_large))
            if is_large:
                self._large_file()
            elif hub.faults.status:
                self._answer(hub.faults.status, b"{}", hub.faults.headers)
            else:
                self._hub(unquote(urlsplit(self.path).path).strip("/").split("/"), token)

        def _hub(self, parts: list[str], token: str) -> None:
            is_api = parts[:2] == ["api", "models"]
            name, rest = "/".join(parts[2:4] if is_api else parts[:2]), parts[4:] if is_api else parts[2:]
            if token and token not in hub.tokens:
                self._answer(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
            elif name not in hub.repositories:
                self._answer(404 if token else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif is_api:
                if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
                    self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                else:
                    self._answer(200, json.dumps(_described(hub, name)).encode(), {})
            elif hub.gated.get(name, token) != token:
                code = 403 if token else 401
                self._answer(code, b"{}", {"X-Error-Code": "GatedRepo"})
            else:
                self._resolve(name, "/".join(rest[2:]))

        def _resolve(self, name: str, file: str) -> None:
            content = hub.repositories[name].get(file)
            if content is None:
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            elif len(content) < LARGE:
                self._content(content, {"ETag": f'"{git_sha1(content)}"', "X-Repo-Commit": COMMIT})
            else:
                headers = {
                    "X-Repo-Commit": COMMIT,
                    "X-Linked-Etag": f'"{sha256(content)}"',
                    "X-Linked-Size": str(len(content)),
                    "Location": f"{hub.large_files}/{name}/{file}?signed=1",
                }
                self._answer(302, b"", headers)

        def _large_file(self) -> None:
            owner, name, *file = unquote(urlsplit(self.path).path).strip("/").split("/")
            assert parse_qs(urlsplit(self.path).query) == {"signed": ["1"]}
            content = hub.repositories[f"{owner}/{name}"]["/".join(file)]
            if hub.faults.rate_limited:
                hub.faults.rate_limited -= 1
                self._answer(429, b"", {"Retry-After": "0"})
                return
            if hub.faults.damages:
                content = content[:-1] + bytes([content[-1] ^ 1])
            self._content(content, {})

        def _content(self, content: bytes, headers: dict[str, str]) -> None:
            asked = self.headers.get("Range", "")
            if not asked or hub.faults.ignores_ranges:
                self._answer(200, content, headers)
                return
            start, _, end = asked.removeprefix("bytes=").partition("-")
            last = min(int(end or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
            self._answer(206, content[int(start) : last + 1], headers)

        def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if is_large and status in (200, 206) and hub.faults.cut_after:
                content = content[: hub.faults.cut_after.pop(0)]
                self.close_connection = True
            with contextlib.suppress(OSError):  # whoever has seen enough of a large file goes
                self.wfile.write(content)

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    return Handler


def _described(hub: FakeHub, name: str) -> dict[str, object]:
    siblings = []
    for file, content in hub.repositories[name].items():
        described: dict[str, object] = {"rfilename": file, "size": len(content), "blobId": git_sha1(content)}
        if len(content) >= LARGE:
            described["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 135}
        siblings.append(described)
    return {"id": name, "sha": COMMIT, "private": False, "gated": name in hub.gated, "siblings": siblings}
