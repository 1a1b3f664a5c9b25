"""A web server that misbehaves on demand, and entries of the registry that point at it."""

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from processing.public_data.registry import Citation, Licence, RemoteFile, Source


@dataclass
class Site:
    """What the server serves and how: `files` by path, `broken` answers that stop after so many bytes."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    broken: dict[str, list[int]] = field(default_factory=dict)
    errors: dict[str, list[int]] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    length: bool = True
    seen: list[tuple[str, str | None, str | None]] = field(default_factory=list)

    def file(self, path: str, **known) -> RemoteFile:
        return RemoteFile(path=path, url=f"{self.address}/{path}", **known)


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self):
        site, path = self.site, self.path.lstrip("/").split("?")[0]
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        site.seen.append((path, asked, condition))
        if site.errors.get(path):
            code = site.errors[path].pop(0)
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path not in site.files:
            self.send_error(404)
            return
        content = site.files[path]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        start = 0
        if asked and site.ranges and (condition is None or condition == etag):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if site.etags:
            self.send_header("ETag", etag)
        if site.length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if site.broken.get(path):
            self.wfile.write(body[: site.broken[path].pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(1)
            return
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    served = Site()
    handler = type("Handler", (_Handler,), {"site": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    served.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()


@pytest.fixture
def make_source():
    """A registry entry with as little as it needs."""

    def make(**said) -> Source:
        entry = {
            "name": "toy",
            "title": "Toy",
            "what": "A toy.",
            "task": "segmentation",
            "homepage": "https://example.org",
            "licence": Licence(name="MIT", train="yes", redistribute="yes"),
            "citation": Citation(key="toy", authors="Doe, Jane", year=2020, title="A toy", doi="10.1000/toy"),
            "size": None,
            "format": "bytes",
            "loader": None,
            "note": "a toy",
            "verified": False,
            "found": {"checksum": "here", "size": "here"},
        }
        return Source(**(entry | said))

    return make
