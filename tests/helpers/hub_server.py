"""A Hub on this machine for tests: as much of its API as a push and a download use, and failures on demand."""

import base64
import hashlib
import json
import re
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "OwnerMayWriteEverythingHere0123456"
READER = "hf_" + "ReaderMayNotWriteAnything012345678"
OWNER = "ada"
LARGE = (".safetensors", ".pt", ".pth", ".bin", ".png")  # what goes by LFS, as the Hub's own rules have it


@dataclass
class Commit:
    message: str
    branch: str
    names: list


@dataclass
class Repo:
    private: bool
    commits: list = field(default_factory=list)
    files: dict = field(default_factory=dict)  # branch -> path -> bytes

    def sha(self, branch):
        return hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()


@dataclass
class Failure:
    """
    What happens to requests whose line (`PUT /lfs/...`) holds `part`: after `skip` of them, `times` are answered with
    `status`, or, if that is `None`, cut off in the middle of what they send.
    """

    part: str
    status: int | None = None
    times: int = 10**6
    skip: int = 0
    met: int = 0


class Hub(ThreadingHTTPServer):
    """
    Its state: `repos` by id, `blobs` by SHA-256, all `bodies` that were received, those of broken requests too, and
    `requests`, their lines.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos, self.blobs, self.bodies, self.requests, self.failures = {}, {}, [], [], []
        self.lock = threading.Lock()

    def handle_error(self, request, client_address):
        pass  # of a client that is gone

    def count(self, part):
        return sum(part in line for line in self.requests)


@contextmanager
def running_hub():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    # ---- Requests ------------------------------------------------------------------------------------------------

    def handle_one_request(self):
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        self.path, self.query = unquote(urlsplit(self.path).path), urlsplit(self.path).query
        with self.server.lock:
            line = f"{self.command} {self.path}"
            self.server.requests.append(line)
            failure = self._failure(line)
        if failure is not None and failure.status is None:
            with self.server.lock:
                self.server.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 2) // 2))
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, no goodbye
            self.connection.close()
            self.close_connection = True
            return
        body = self._body()
        with self.server.lock:
            if body:
                self.server.bodies.append(body)
            if failure is not None:
                self._answer(failure.status, {"error": "as the test has it"})
            else:
                self._route(body)
        self.wfile.flush()

    def _failure(self, line):
        for failure in self.server.failures:
            if failure.part in line:
                failure.met += 1
                if failure.skip < failure.met <= failure.skip + failure.times:
                    return failure
        return None

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status, content=None, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code):
        self._answer(404, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    # ---- The API -------------------------------------------------------------------------------------------------

    def _route(self, body):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        reads = self.command in ("GET", "HEAD") and self.path != "/api/whoami-v2"
        if self.path.startswith("/lfs/"):
            self.server.blobs[self.path.rpartition("/")[2]] = body
            self._answer(200)
        elif token not in (TOKEN, READER) and (token or not reads):
            message = "Invalid credentials in Authorization header"
            self._answer(401, {"error": message}, {"X-Error-Message": message})
        elif self.path == "/api/whoami-v2":
            self._answer(200, {"type": "user", "name": OWNER, "auth": {"accessToken": {"role": "write"}}})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body), token)
        elif match := re.fullmatch(r"/(?:api/models/)?([\w.-]+/[\w.-]+?)(?:\.git)?(/.*)?", self.path):
            self._in_repo(match[1], match[2] or "", body, token, reads)
        else:
            self._answer(404)

    def _create(self, wanted, token):
        name = f"{wanted['organization'] or OWNER}/{wanted['name']}"
        if name in self.server.repos:
            self._answer(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"})
        elif token == READER or not name.startswith(f"{OWNER}/"):
            self._answer(403, {"error": "You don't have the rights"}, {"X-Error-Message": "You don't have the rights"})
        else:
            private = wanted.get("private") is True or wanted.get("visibility") == "private"
            self.server.repos[name] = Repo(private, files={"main": {}})
            self._answer(200, {"url": f"{self.server.url}/{name}", "name": name})

    def _in_repo(self, name, rest, body, token, reads):
        repo = self.server.repos.get(name)
        if repo is None:
            self._missing("RepoNotFound")
            return
        if not reads and token == READER:
            message = "pass create_pr=1 as a query parameter to create a Pull Request"
            self._answer(403, {"error": message}, {"X-Error-Message": message})
            return
        _, action, branch, path = (*rest.split("/", 3), "", "", "")[:4]
        branch = branch if branch in repo.files else next((b for b in repo.files if repo.sha(b) == branch), branch)
        if action in ("preupload", "commit", "resolve", "tree", "revision") and branch not in repo.files:
            self._missing("RevisionNotFound")
        elif action == "preupload":
            self._answer(200, {"files": [self._preupload(repo, branch, file) for file in json.loads(body)["files"]]})
        elif action == "info":
            self._answer(200, {"transfer": "basic", "objects": [self._batch(o) for o in json.loads(body)["objects"]]})
        elif action == "commit":
            self._commit(repo, name, branch, [json.loads(line) for line in body.splitlines()])
        elif action == "resolve":
            self._resolve(repo, branch, path)
        elif action == "tree":
            self._tree(repo, branch, path)
        else:
            siblings = [{"rfilename": path} for path in repo.files["main"]]
            about = {"id": name, "modelId": name, "sha": repo.sha(branch or "main"), "private": repo.private}
            self._answer(200, {**about, "siblings": siblings, "tags": []})

    def _preupload(self, repo, branch, file):
        known = repo.files[branch].get(file["path"])
        large = file["path"].endswith(LARGE)
        told = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        return {**told, "oid": _oid(known, large)} if known is not None else told

    def _batch(self, wanted):
        if wanted["oid"] in self.server.blobs:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}}

    def _commit(self, repo, name, branch, lines):
        added = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            else:
                blob = self.server.blobs.get(value["oid"])
                assert hashlib.sha256(blob).hexdigest() == value["oid"], "not what was promised"
                added[value["path"]] = blob
        repo.files[branch] |= added
        repo.commits.append(Commit(lines[0]["value"]["summary"], branch, sorted(added)))
        sha = repo.sha(branch)
        self._answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def _resolve(self, repo, branch, path):
        content = repo.files[branch].get(path)
        if content is None:
            self._missing("EntryNotFound")
            return
        etag = _oid(content, path.endswith(LARGE))
        self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": repo.sha(branch)})

    def _tree(self, repo, branch, folder):
        inside = {path: content for path, content in repo.files[branch].items() if path.startswith(folder)}
        if not inside:
            self._missing("EntryNotFound")
            return
        files = [
            {"type": "file", "path": path, "size": len(content), "oid": _oid(content, False)}
            for path, content in inside.items()
        ]
        self._answer(200, files)


def _oid(content, large):
    return (
        hashlib.sha256(content).hexdigest()
        if large
        else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    )
