"""A small Hub on this machine: the HTTP interface that uploading speaks, kept in memory.

Written from the requests that the client makes: who am I, make a repository, list it, check the card, say how each
file is stored, take LFS objects (batch, upload, verify), and commit. What it refuses, the real one refuses too: a
stranger's namespace, a token that may only read, an LFS object that was never sent.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

import yaml

TOKENS = {"hf_writer": "write", "hf_reader": "read"}
ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs\n*.parquet filter=lfs\n"


@dataclass
class Repository:
    private: bool = False
    files: dict = field(default_factory=lambda: {".gitattributes": ATTRIBUTES.encode()})
    stored: dict = field(default_factory=dict)
    commits: list = field(default_factory=list)


class HubStandIn:
    """The server; `url` is its endpoint, `repositories` what lies there."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fail_commit: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):  # noqa: N802
                hub.answer(self, "GET")

            def do_POST(self):  # noqa: N802
                hub.answer(self, "POST")

            def do_PUT(self):  # noqa: N802
                hub.answer(self, "PUT")

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request, method):
        length = int(request.headers.get("Content-Length") or 0)
        if request.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(request.rfile.readline().strip(), 16):
                body += request.rfile.read(size)
                request.rfile.readline()
            request.rfile.readline()
        else:
            body = request.rfile.read(length)
        path = urlparse(request.path).path
        self.requests.append(f"{method} {path}")
        role = TOKENS.get((request.headers.get("Authorization") or "").removeprefix("Bearer "))
        status, content, headers = self.route(method, path, body, role)
        data = json.dumps(content).encode() if not isinstance(content, bytes) else content
        request.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(data)

    def route(self, method, path, body, role):
        if path.startswith("/lfs-objects/") and method == "PUT":
            oid = path.rsplit("/", 1)[1]
            if hashlib.sha256(body).hexdigest() != oid:
                return 400, {"error": "wrong hash"}, {}
            self.objects[oid] = body
            return 200, {}, {"ETag": oid}
        if role is None:
            return 401, {"error": "Invalid username or password."}, {}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "ada", "orgs": [{"name": "fields"}]}, {}
        if path == "/api/validate-yaml":
            head = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
            errors = (
                [] if head and yaml.safe_load(head.group(1)).get("license") else [{"message": "license is missing"}]
            )
            return (400 if errors else 200), {"errors": errors, "warnings": []}, {}
        if path == "/api/repos/create":
            return self.create(json.loads(body), role)
        match = re.match(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(preupload|commit)/main)?$", path)
        if match:
            kind, name, what = match.groups()
            repository = self.repositories.get(f"{kind}:{name}")
            if repository is None:
                return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            if what is None:
                siblings = [{"rfilename": file} for file in repository.files]
                about = {"id": name, "private": repository.private, "siblings": siblings, "tags": []}
                return 200, {**about, "disabled": False, "downloads": 0, "likes": 0}, {}
            return (
                self.preupload(json.loads(body)) if what == "preupload" else self.commit(name, repository, body, role)
            )
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = []
            for one in json.loads(body)["objects"]:
                link = f"{self.url}/lfs-objects/{one['oid']}"
                actions = {"upload": {"href": link}, "verify": {"href": f"{self.url}/lfs-verify"}}
                objects.append({**one, **({} if one["oid"] in self.objects else {"actions": actions})})
            return 200, {"transfer": "basic", "objects": objects}, {}
        if path == "/lfs-verify":
            one = json.loads(body)
            there = len(self.objects.get(one["oid"], b"")) == one["size"]
            return (200 if there else 404), {}, {}
        return 404, {"error": f"no such address {path}"}, {}

    def create(self, asked, role):
        owner = asked.get("organization") or "ada"
        if role != "write" or owner not in ("ada", "fields"):
            return 403, {"error": "You don't have the rights to create a model under this namespace"}, {}
        key = f"{asked.get('type') or 'model'}:{owner}/{asked['name']}"
        if key in self.repositories:
            return 409, {"error": "You already created this repo", "url": f"{self.url}/{owner}/{asked['name']}"}, {}
        self.repositories[key] = Repository(private=asked.get("visibility") == "private")
        prefix = "datasets/" if asked.get("type") == "dataset" else ""
        return 200, {"url": f"{self.url}/{prefix}{owner}/{asked['name']}"}, {}

    def preupload(self, asked):
        rows = []
        for one in asked["files"]:
            patterns = [line.split()[0] for line in ATTRIBUTES.splitlines()]
            binary = b"\0" in base64.b64decode(one["sample"])
            large = one["size"] > 10 * 1024**2
            lfs = binary or large or any(fnmatch(one["path"], pattern) for pattern in patterns)
            rows.append({"path": one["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False})
        return 200, {"files": rows}, {}

    def commit(self, name, repository, body, role):
        if self.fail_commit:
            return self.fail_commit, {"error": "no"}, {}
        if role != "write":
            return 403, {"error": "Forbidden"}, {}
        lines = [json.loads(line) for line in body.decode().splitlines() if line.strip()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
                repository.stored[value["path"]] = "regular"
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return 400, {"error": f"{value['path']} was never uploaded"}, {}
                repository.files[value["path"]] = self.objects[value["oid"]]
                repository.stored[value["path"]] = "lfs"
            elif line["key"] == "deletedFile":
                repository.files.pop(value["path"])
                repository.stored.pop(value["path"], None)
        oid = hashlib.sha1(body).hexdigest()
        repository.commits.append({"oid": oid, "summary": lines[0]["value"]["summary"], "lines": len(lines) - 1})
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"}, {}
