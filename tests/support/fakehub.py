"""A stand-in for the Hugging Face Hub on the loopback, with faults on demand; standard library only.

    with FakeHub(root) as hub:                    # files: root/OWNER/NAME/...
        os.environ["HF_ENDPOINT"] = hub.url       # in a new process, or before huggingface_hub is imported

A folder is the main branch of its repository. A file `.hub.json` in it may hold:

    {"commit": HEX40, "gated": true, "private": true,
     "revisions": {"refs/pr/1" or a tag or HEX40: "subfolder"},
     "pulls": [{"num": 1, "title": ..., "author": ..., "status": "open"}]}

The commits of a revision are its own and that of main. The token "hf_good" may read everything, and every
other token is refused. As on the real hub, small files are answered by a 307 to /api/resolve-cache, weights
(LFS) by a 302 to another host with X-Linked-Etag = SHA-256, and errors carry X-Error-Code. `hub.log` lists
all requests as [method, path, status, Range, token]. `hub.fault("^GET /cdn/", ...)` breaks the next requests
that match; see `FakeHub.fault`.

Alone: python fakehub.py ROOT [PORT]. Then POST /_fault {"pattern": ..., "status": 503}, and GET /_log.
"""

import hashlib
import json
import re
import socket
import struct
import sys
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS = (".safetensors", ".msgpack", ".bin", ".h5", ".model", ".onnx")
FILE = re.compile(r"^/(?:(api/resolve-cache/models|cdn)/)?([^/]+/[^/]+)/(?:resolve/)?([^/]+)/(.+)$")
INFO = {
    "_id": "0",
    "private": False,
    "gated": False,
    "disabled": False,
    "tags": [],
    "downloads": 0,
    "likes": 0,
}
API = re.compile(
    r"^/api/models/([^/]+/[^/]+)(?:/(revision|tree|commits|discussions)(?:/([^/]+)(?:/(.+))?)?)?$"
)
TIME = "2024-01-01T00:00:00.000Z"


@cache
def hashes(path: Path, mtime: int) -> tuple[str, str]:
    """Returns Git's blob id and the SHA-256 of a file. `mtime` distinguishes changed files."""
    git = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())  # noqa: S324 (Git's own hash)
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            git.update(block)
            sha.update(block)
    return git.hexdigest(), sha.hexdigest()


class RefusedError(Exception):
    """A request that is answered by an error."""

    def __init__(self, status: int, code: str, message: str, **headers: str):
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **headers}


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    log_message = staticmethod(lambda *_: None)
    hub: "FakeHub"

    def do_GET(self):
        path = urlsplit(self.path).path  # still quoted: a revision may be refs%2Fpr%2F1
        self.entry = [
            self.command,
            path,
            None,
            self.headers["Range"],
            self.headers["Authorization"],
        ]
        if path == "/_log":
            return self.reply(200, json.dumps(self.hub.log))
        self.fault = self.hub.take_fault(f"{self.command} {path}")
        self.hub.log.append(self.entry)
        try:
            if self.fault.get("reset"):
                self.hang_up(hard=True)
            elif "status" in self.fault:
                self.reply(self.fault["status"], "fault")
            elif match := API.match(path):
                self.answer_api(*match.groups())
            elif match := FILE.match(path):
                self.answer_file(*match.groups())
            else:
                self.reply(404, f"no such route: {path}")
        except RefusedError as refused:
            self.reply(refused.status, refused.headers["X-Error-Message"], refused.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client closed the connection
        return None

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self):
        self.entry = [None] * 3
        self.hub.fault(**json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.reply(200, "")

    def open(self, name: str, revision: str) -> tuple[str, Path]:
        """Returns the commit and folder of a revision, if the client may read them."""
        token, settings = self.headers["Authorization"], self.hub.settings(name)
        if token not in (None, "Bearer hf_good"):
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        if settings is None or (settings.get("private") and not token):
            raise RefusedError(404 if token else 401, "RepoNotFound", "Repository not found")
        if settings.get("gated") and not token:
            raise RefusedError(401, "GatedRepo", f"Access to model {name} is restricted.")
        if found := self.hub.revision(name, unquote(revision)):
            return found
        raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {unquote(revision)}")

    def answer_api(self, name: str, kind: str | None, revision: str | None, part: str | None):
        commit, folder = self.open(name, revision or "main")
        if part and not (folder / part).is_dir():
            raise RefusedError(404, "EntryNotFound", f"{part} does not exist")
        if kind == "commits":
            history = list(dict.fromkeys([commit, self.open(name, "main")[0]]))
            made = [
                {"id": found, "authors": [], "date": TIME, "title": "", "message": ""}
                for found in history
            ]
        elif kind == "discussions":
            pulls = [
                {"isPullRequest": True, "createdAt": TIME, "repo": {"name": name, "type": "model"}}
                | pull
                | {"author": {"name": pull["author"]}}
                for pull in self.hub.settings(name).get("pulls", [])
            ]
            made = {"discussions": pulls, "count": len(pulls), "start": 0}
        else:
            made = list(self.listing(folder))
            if kind != "tree":
                siblings = [{"rfilename": entry["path"]} for entry in made]
                own = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
                made = INFO | own
        self.reply(200, json.dumps(made), {"X-Repo-Commit": commit})

    def answer_file(self, place: str | None, name: str, revision: str, file: str):
        # Links to the content host are signed, so clients send it no token.
        commit, folder = (self.hub.revision if place == "cdn" else self.open)(name, revision)
        path = folder / unquote(file)
        if not path.is_file() or path.name == ".hub.json" or ".." in file:
            commit_header = {"X-Repo-Commit": commit}
            raise RefusedError(404, "EntryNotFound", "Entry not found", **commit_header)
        lfs = path.suffix in LFS
        etag = f'"{hashes(path.resolve(), path.stat().st_mtime_ns)[lfs]}"'
        headers = {"X-Repo-Commit": commit, "ETag": etag}
        if place:
            return self.send_content(path, headers)
        target = f"{self.hub.content_url}/cdn" if lfs else "/api/resolve-cache/models"
        headers |= {
            "X-Linked-Size": str(path.stat().st_size),
            "Location": f"{target}/{name}/{commit}/{file}",
        }
        if lfs:
            headers["X-Linked-Etag"] = etag
        return self.reply(302 if lfs else 307, "", headers)

    def listing(self, folder: Path):
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or path.name == ".hub.json":
                continue
            size = path.stat().st_size
            git, sha = hashes(path.resolve(), path.stat().st_mtime_ns)
            lfs = {"lfs": {"oid": sha, "size": size, "pointerSize": 134}}
            entry = {"type": "file", "oid": git, "size": size}
            entry |= {"path": path.relative_to(folder).as_posix()}
            yield entry | (lfs if path.suffix in LFS else {})

    def send_content(self, path: Path, headers: dict):
        size, start = path.stat().st_size, int((self.headers["Range"] or "bytes=0-")[6:-1])
        if start:
            headers |= {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        self.begin(206 if start else 200, headers, size - start)
        end = start if self.command == "HEAD" else min(start + self.fault.get("cut", size), size)
        with path.open("rb") as opened:
            opened.seek(start)
            while block := opened.read(min(1 << 16, end - opened.tell())):
                self.wfile.write(block)
                time.sleep(self.fault.get("slow", 0))
        if "cut" in self.fault and self.command == "GET":
            self.hang_up(self.fault.get("hard", False))

    def begin(self, status: int, headers: dict, length: int):
        self.entry[2] = status
        self.send_response(status)
        for header in (headers | {"Content-Length": str(length)}).items():
            self.send_header(*header)
        self.end_headers()

    def reply(self, status: int, content: str, headers: dict | None = None):
        self.begin(status, headers or {}, len(content.encode()))
        if self.command != "HEAD":
            self.wfile.write(content.encode())

    def hang_up(self, hard: bool):
        self.close_connection = True
        self.wfile.flush()
        if hard:  # the client sees a reset
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)


class FakeHub:
    """The server. It runs while it is used as a context."""

    def __init__(self, root, port: int = 0):
        self.root, self.lock = Path(root), threading.Lock()
        self.log: list[list] = []
        self.faults: list[list] = []
        handler = type("Bound", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.content_url = f"http://localhost:{self.server.server_port}"  # another host to clients

    def fault(self, pattern: str, times: int = 1, **what):
        """Breaks the next requests that match.

        status=503 answers with that status. reset=True gives no answer. cut=BYTES ends the connection after
        that many bytes (hard=True with a reset). slow=SECONDS waits for each 64 kB.
        """
        self.faults.append([re.compile(pattern), times, what])

    def take_fault(self, request: str) -> dict:
        with self.lock:
            hit = next(
                (fault for fault in self.faults if fault[1] > 0 and fault[0].search(request)),
                [0, 0, {}],
            )
            hit[1] -= 1
            return hit[2]

    def settings(self, name: str) -> dict | None:
        file = self.root / name / ".hub.json"
        if file.is_file():
            return json.loads(file.read_text())
        return {} if file.parent.is_dir() else None

    def revision(self, name: str, revision: str) -> tuple[str, Path] | None:
        """Returns the commit and the folder of a branch, tag, pull request or commit."""
        settings, folder = self.settings(name) or {}, self.root / name
        for known, part in ({"main": ""} | settings.get("revisions", {})).items():
            commit = settings.get("commit") if known == "main" else known
            if not re.fullmatch("[0-9a-f]{40}", commit or ""):
                commit = hashlib.sha1((name + known).encode()).hexdigest()  # noqa: S324
            if revision in (known, commit):
                return commit, folder / part
        return None

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


if __name__ == "__main__":
    alone = FakeHub(sys.argv[1], int([*sys.argv, "0"][2]))
    print(alone.url, flush=True)
    alone.server.serve_forever()
