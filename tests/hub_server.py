"""A small hub on loopback: as much of the hub's HTTP API as its clients use, and its failures."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin")  # what the hub keeps in its large-file storage


@dataclass(frozen=True)
class File:
    """A file and how the hub names its content: by SHA-256 where it is large, else as git does."""

    name: str
    content: bytes

    @property
    def large(self) -> bool:
        return self.name.endswith(LARGE)

    @cached_property
    def object_id(self) -> str:
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def entry(self) -> dict[str, Any]:
        """How a listing describes it."""
        size = len(self.content)
        entry = {"type": "file", "path": self.name, "size": size, "oid": self.object_id[:40]}
        if self.large:
            entry["lfs"] = {"oid": self.object_id, "size": size, "pointerSize": 134}
            # The hub offers another way to all its large files. Who takes it fails here.
            entry["xetHash"] = self.object_id
        return entry


@dataclass
class Repository:
    """A model or dataset at its one commit."""

    files: dict[str, File]
    gated: bool = False
    branches: tuple[str, ...] = ("main",)

    @cached_property
    def commit(self) -> str:
        content = [(file.name, file.object_id) for file in self.files.values()]
        return hashlib.sha1(repr(content).encode()).hexdigest()


def _read(directory: Path) -> dict[str, File]:
    result = (path for path in sorted(directory.rglob("*")) if path.is_file())
    files = (File(str(path.relative_to(directory)), path.read_bytes()) for path in result)
    return {file.name: file for file in files}


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    path: str
    range: str | None
    token: str | None
    host: str


@dataclass
class Hub:
    """The hub's content and state, shared by the threads that answer."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    token: str = "hf_token_that_has_access"
    strangers_token: str = "hf_token_without_access"
    requests: list[Request] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    # Answers to the next requests whose paths end so, before the right one: status and headers.
    failures: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    # What is sent in the place of a file's content; of the same size.
    tampered: dict[str, bytes] = field(default_factory=dict)
    # Files of which 50 bytes are sent a second.
    trickling: set[str] = field(default_factory=set)
    # After so many bytes of a large file, the first sending of it ends …
    break_after: dict[str, int] = field(default_factory=dict)
    # … in a refusal of further requests, or, where it hangs, only with the client.
    hang: bool = False
    hanging: threading.Event = field(default_factory=threading.Event)
    refused: set[str] = field(default_factory=set)
    ended: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, kind: str, name: str, directory: Path, **more: Any) -> Repository:
        """Serve a directory as a repository; kind is models or datasets."""
        self.repositories[kind, name] = Repository(_read(directory), **more)
        return self.repositories[kind, name]

    def asked_for(self, ending: str) -> list[Request]:
        """Requests for files whose address ends so, without those for their description."""
        return [
            request
            for request in self.requests
            if request.method == "GET" and request.path.endswith(ending)
        ]

    def repair(self) -> None:
        """Let everything work from now on, and forget what was asked and sent."""
        self.break_after, self.hang, self.refused = {}, False, set()
        self.failures, self.tampered, self.trickling = {}, {}, set()
        self.requests, self.sent = [], {}


class Handler(BaseHTTPRequestHandler):
    """Answers one client."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, status: HTTPStatus, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: HTTPStatus, code: str | None, message: str) -> None:
        more = {"X_Error_Code": code} if code else {}
        self._answer(status, **more, X_Error_Message=message)

    def _json(self, value: Any) -> None:
        self._answer(HTTPStatus.OK, json.dumps(value).encode(), Content_Type="application/json")

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _record(self) -> str:
        path = unquote(urlsplit(self.path).path)
        host = self.headers["Host"].rpartition(":")[0]
        self.hub.requests.append(
            Request(self.command, path, self.headers.get("Range"), self._token(), host)
        )
        return path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._route(self._record(), parse_qs(body).get("paths", []))

    def do_GET(self) -> None:
        self._route(self._record(), [])

    def _route(self, path: str, paths: list[str]) -> None:
        parts = path.strip("/").split("/")
        for ending, failures in self.hub.failures.items():
            if path.endswith(ending) and failures:
                status, headers = failures.pop(0)
                return self._answer(HTTPStatus(status), **headers)
        if parts[0] == "storage":
            return self._send_large(parts[1], parts[2])
        if parts[0] == "api":
            kind, name, action = parts[1], "/".join(parts[2:4]), parts[4:] or ["revision", "main"]
        else:
            kind = "datasets" if parts[0] == "datasets" else "models"
            parts = parts[1:] if kind == "datasets" else parts
            name, action = "/".join(parts[:2]), parts[2:]
        repository = self.hub.repositories.get((kind, name))
        if self._token() not in (None, self.hub.token, self.hub.strangers_token):
            message = "Invalid credentials in Authorization header"
            return self._refuse(HTTPStatus.UNAUTHORIZED, None, message)
        if repository is None:
            # Without a token, missing and private are one to the hub. It leaves the code out there,
            # which its client makes up for, but only where the address begins with https.
            status = HTTPStatus.NOT_FOUND if self._token() else HTTPStatus.UNAUTHORIZED
            return self._refuse(status, "RepoNotFound", "Repository not found")
        if action[1] not in (*repository.branches, repository.commit):
            message = f"Invalid rev id: {action[1]}"
            return self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound", message)
        if action[0] == "revision":
            return self._json(self._description(name, repository))
        if action[0] == "tree":
            return self._send_tree(repository, "/".join(action[2:]))
        if action[0] == "paths-info":
            result = [repository.files[name].entry for name in paths if name in repository.files]
            return self._json(result)
        return self._send(repository, "/".join(action[2:]))

    def _description(self, name: str, repository: Repository) -> dict[str, Any]:
        return {
            "id": name,
            "sha": repository.commit,
            "gated": "manual" if repository.gated else False,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": file} for file in repository.files],
        }

    def _send_tree(self, repository: Repository, folder: str) -> None:
        files = repository.files.values()
        result = [file.entry for file in files if file.name.startswith(folder)]
        if folder and not result:
            return self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{folder} does not exist")
        return self._json(result)

    def _send(self, repository: Repository, name: str) -> None:
        if repository.gated and self._token() != self.hub.token:
            status = HTTPStatus.FORBIDDEN if self._token() else HTTPStatus.UNAUTHORIZED
            return self._refuse(status, "GatedRepo", "Access to this repository is restricted.")
        commit = {"X_Repo_Commit": repository.commit}
        file = repository.files.get(name)
        if file is None:
            return self._answer(HTTPStatus.NOT_FOUND, X_Error_Code="EntryNotFound", **commit)
        etag = f'"{file.object_id}"'
        if not file.large:
            content = self.hub.tampered.get(name, file.content)
            return self._answer(HTTPStatus.OK, content, ETag=etag, **commit)
        # The storage is another host, to which no token must go.
        return self._answer(
            HTTPStatus.FOUND,
            Location=f"http://localhost:{self.hub.port}/storage/{file.object_id}/{name}",
            X_Linked_Size=str(len(file.content)),
            X_Linked_ETag=etag,
            X_Xet_Hash=file.object_id,
            X_Xet_Refresh_Route=f"{self.hub.endpoint}/not-here/not-here/xet-read-token",
            **commit,
        )

    def _send_large(self, object_id: str, name: str) -> None:
        if name in self.hub.refused:
            return self._answer(HTTPStatus.SERVICE_UNAVAILABLE, Retry_After="0")
        content = next(
            file.content
            for repository in self.hub.repositories.values()
            for file in repository.files.values()
            if file.object_id == object_id
        )
        content = self.hub.tampered.get(name, content)
        size = len(content)
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        more = {"Content_Range": f"bytes {start}-{size - 1}/{size}"} if start else {}
        status = HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK
        self._answer(status, Content_Length=str(size - start), **more)
        if self.command == "HEAD":
            return None
        while name in self.hub.trickling and not self.hub.ended.wait(1):
            self.wfile.write(content[start : start + 50])
            start += 50
        end = self.hub.break_after.pop(name, size)
        self.wfile.write(content[start:end])
        self.hub.sent[name] = self.hub.sent.get(name, 0) + end - start
        if end < size:
            self._break_off(name)
        return None

    def _break_off(self, name: str) -> None:
        self.close_connection = True
        if self.hub.hang:
            self.wfile.flush()
            self.hub.hanging.set()
            self.hub.ended.wait(60)
        else:
            self.hub.refused.add(name)


@contextmanager
def serving() -> Iterator[Hub]:
    """Yield an empty hub that is being served."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
