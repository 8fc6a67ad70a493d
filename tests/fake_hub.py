"""The Hugging Face Hub on the loopback, as far as huggingface_hub's client needs it to read and to publish models.

    with running() as hub:                                     # HF_ENDPOINT is hub.endpoint
        hub.users["hf_write"] = User("ada", "write")
        hub.add("ada/m", {"config.json": b"{}"})
        hub.faults["commit"] = [reply_lost, None]              # what befalls the first, the second ... of a route
        hub.count("object")                                    # how many objects were put so far

It checks what the Hub checks: who may write, an object's sha256 and size when it is put, that it is there when it is
committed, and the parent of a commit. An answer is a value, so that a fault can lose it after all has happened.
`again` names the objects that were put though they were there; `trees` is all that anybody could ever see of a branch.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from fake_repos import ATTRIBUTES, Repo, User, git_sha1, is_large, sha256
from hub_faults import Answer, BrokenOff, Call, Fault

DATE = "2026-01-01T00:00:00.000Z"
PAGE = 1000
"""Rows of a tree in one answer."""


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


_ID = r"([^/]+/[^/]+)"
ROUTES: tuple[tuple[str, str, str], ...] = (
    ("whoami", "GET", r"/api/whoami-v2"),
    ("create", "POST", r"/api/repos/create"),
    ("yaml", "POST", r"/api/validate-yaml"),
    ("auth", "GET", rf"/api/models/{_ID}/auth-check(/write)?"),
    ("refs", "GET", rf"/api/models/{_ID}/refs"),
    ("tree", "GET", rf"/api/models/{_ID}/tree/([^/]+)(?:/(.*))?"),
    ("paths", "POST", rf"/api/models/{_ID}/paths-info/([^/]+)"),
    ("preupload", "POST", rf"/api/models/{_ID}/preupload/([^/]+)"),
    ("commit", "POST", rf"/api/models/{_ID}/commit/([^/]+)"),
    ("branch", "POST", rf"/api/models/{_ID}/branch/([^/]+)"),
    ("commits", "GET", rf"/api/models/{_ID}/commits/([^/]+)"),
    ("discussions", "GET", rf"/api/models/{_ID}/discussions"),
    ("discuss", "POST", rf"/api/models/{_ID}/discussions"),
    ("discussion", "GET", rf"/api/models/{_ID}/discussions/(\d+)"),
    ("merge", "POST", rf"/api/models/{_ID}/discussions/(\d+)/merge"),
    ("info", "GET", rf"/api/models/{_ID}(?:/revision/([^/]+))?"),
    ("batch", "POST", rf"/{_ID}\.git/info/lfs/objects/batch"),
    ("object", "PUT", rf"/objects/{_ID}/([0-9a-f]{{64}})"),
    ("part", "PUT", rf"/parts/{_ID}/([0-9a-f]{{64}})/(\d+)"),
    ("complete", "POST", rf"/complete/{_ID}/([0-9a-f]{{64}})"),
    ("verify", "POST", rf"/verify/{_ID}"),
    ("resolve", "GET", rf"/{_ID}/resolve/([^/]+)/(.+)"),
    ("cdn", "GET", rf"/cdn/{_ID}/([0-9a-f]{{64}})"),
)


@dataclass(frozen=True)
class Arrived:
    """A request's head: what it asks for, and the fault that befalls it."""

    route: str
    groups: tuple[str, ...]
    method: str
    target: str
    headers: Mapping[str, str]
    fault: Fault | None


class FakeHub(ThreadingHTTPServer):
    """`part_nbytes`: objects over it are put in parts. `cdn`: large files are answered by a redirect, as on the Hub.

    `storage`: what it redirects to and where objects are put: this server too, but it may be by another host's name.
    `plan` says what befalls a request of a route and its repo (None where it names none), before `faults` are looked
    at. `later` are threads of what happens after an answer. `over` is set at the end.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.users: dict[str, User] = {}
        self.repos: dict[str, Repo] = {}
        self.faults: dict[str, list[Fault | None]] = {}
        self.always: dict[str, Fault] = {}
        self.plan: Callable[[str, str | None], Fault | None] = lambda route, repo: None
        self.later: list[threading.Thread] = []
        self.calls: list[Call] = []
        self.statuses: list[tuple[str, int]] = []
        self.parts: dict[tuple[str, str], dict[int, bytes]] = {}
        self.part_nbytes: int | None = None
        self.cdn = False
        self.storage = self.endpoint
        self.again: list[str] = []
        self.over = threading.Event()
        self.lock = threading.RLock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def elsewhere(self) -> str:
        """This server under the name of another host."""
        return f"http://localhost:{self.server_address[1]}"

    def add(self, name: str, files: Mapping[str, bytes] = {}, *, private: bool = False, gated: bool = False) -> Repo:
        """A repo with one commit on main."""
        repo = self.repos[name] = Repo(name, private, gated)
        repo.commit("main", {".gitattributes": ATTRIBUTES, **files}, "initial commit")
        return repo

    def asked(self, route: str) -> list[Call]:
        return [c for c in self.calls if c.route == route]

    def count(self, route: str) -> int:
        return len(self.asked(route))

    def arrived(self, method: str, target: str, headers: Mapping[str, str]) -> Arrived | None:
        """A request's head; None where there is no such route."""
        path = unquote(urlsplit(target).path.replace("%2F", "%252F"))
        for route, wanted, pattern in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and wanted == ("GET" if method == "HEAD" else method):
                groups = tuple(unquote(g) if g is not None else "" for g in match.groups())
                with self.lock:
                    fault = self.plan(route, groups[0] if groups else None)
                    waiting = self.faults.get(route, [])
                    fault = fault or (waiting.pop(0) if waiting else self.always.get(route))
                return Arrived(route, groups, method, target, headers, fault)
        return None

    def answer(self, request: Arrived, body: bytes) -> Answer:
        """A whole request, with what befalls it."""
        url = urlsplit(request.target)
        path = unquote(url.path.replace("%2F", "%252F"))
        query = parse_qs(url.query)
        this = Call(request.route, request.method, path, query, request.headers, body, request.groups)
        with self.lock:
            self.calls.append(this)

        def act(call: Call | None = None) -> Answer:
            with self.lock:
                try:
                    return getattr(self, f"_{request.route}")(call or this, *request.groups)
                except Refused as e:
                    said = {"X-Error-Message": e.message} | ({"X-Error-Code": e.code} if e.code else {})
                    return Answer(e.status, json.dumps({"error": e.message}).encode(), said)

        answer = request.fault(this, act) if request.fault else act()
        self.statuses.append((request.route, answer.status))
        return answer

    # Who may do what

    def _user(self, call: Call) -> User | None:
        if call.token is None:
            return None
        if call.token not in self.users:
            raise Refused(401, "Invalid user token.")
        return self.users[call.token]

    def _repo(self, call: Call, name: str, *, write: bool = False) -> Repo:
        user, repo = self._user(call), self.repos.get(name)
        owner = user is not None and user.name == name.split("/")[0]
        if repo is None or (repo.private and not owner):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and (user is None or not user.may_write(name)):
            raise Refused(403, "Forbidden: you must use a token with write rights to this repo")
        return repo

    def _tree_of(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            raise Refused(404, f"Revision not found: {revision}", "RevisionNotFound")
        return sha, repo.commits[sha]

    # Routes

    def _whoami(self, call: Call) -> Answer:
        user = self._user(call)
        if user is None:
            raise Refused(401, "Invalid username or password.")
        access: dict[str, Any] = {"displayName": "t", "role": user.role if user.only is None else "fineGrained"}
        if user.only is not None:
            scoped = [{"entity": {"type": "model", "name": n}, "permissions": ["repo.write"]} for n in user.only]
            access["fineGrained"] = {"canReadGatedRepos": True, "global": [], "scoped": scoped}
        return _json({"type": "user", "name": user.name, "orgs": [], "auth": {"accessToken": access}})

    def _create(self, call: Call) -> Answer:
        user, asked = self._user(call), json.loads(call.body)
        name = f"{asked.get('organization') or (user.name if user else '')}/{asked['name']}"
        if user is None or not user.may_write(name):
            raise Refused(403, "Forbidden: you don't have the right to create a model under this namespace")
        if name in self.repos:
            body = {"error": "You already created this model repo", "url": f"{self.endpoint}/{name}"}
            return replace(_json(body), status=409)
        self.add(name, private=asked.get("visibility") == "private")
        return _json({"url": f"{self.endpoint}/{name}", "name": name, "id": name})

    def _yaml(self, call: Call) -> Answer:
        return _json({"errors": [], "warnings": []})

    def _auth(self, call: Call, name: str, write: str) -> Answer:
        repo = self._repo(call, name, write=bool(write))
        if repo.gated and self._user(call) is None:
            raise Refused(401, "Access to model is restricted", "GatedRepo")
        return _json({})

    def _refs(self, call: Call, name: str) -> Answer:
        repo = self._repo(call, name)
        pulls = {n: sha for n, sha in repo.refs.items() if n.startswith("refs/")}
        heads = {n: sha for n, sha in repo.refs.items() if n not in pulls}
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in heads.items()]
        found: dict[str, Any] = {"branches": branches, "tags": [], "converts": []}
        if call.query.get("include_prs"):
            names = {n: n.rpartition("/")[2] for n in pulls}
            found["pullRequests"] = [{"name": names[n], "ref": n, "targetCommit": sha} for n, sha in pulls.items()]
        return _json(found)

    def _commits(self, call: Call, name: str, revision: str) -> Answer:
        """Those of one ref, the newest first."""
        repo = self._repo(call, name)
        rows = [
            {"id": sha, "title": title, "message": "", "date": DATE, "authors": []}
            for (ref, title), sha in zip(repo.log, repo.commits, strict=True)
            if ref in (revision, "main")
        ]
        return _json(rows[::-1])

    def _discussions(self, call: Call, name: str) -> Answer:
        """Pull requests, the newest first."""
        repo, asked = self._repo(call, name), call.query.get("author")
        rows = [self._row(repo, n) for n, (_, author) in repo.pulls.items() if asked in (None, [author])]
        return _json({"discussions": rows[::-1], "count": len(rows), "start": 0})

    def _discussion(self, call: Call, name: str, number: str) -> Answer:
        repo = self._repo(call, name)
        if int(number) not in repo.pulls:
            raise Refused(404, "no such discussion")
        more = {"changes": {"base": "refs/heads/main", "mergeCommitId": None}, "filesWithConflicts": [], "events": []}
        return _json(self._row(repo, int(number)) | more)

    def _row(self, repo: Repo, number: int) -> dict[str, Any]:
        title, author = repo.pulls[number]
        said = {"num": number, "title": title, "author": {"name": author}, "createdAt": DATE, "status": "open"}
        return said | {"repo": {"name": repo.name, "type": "model"}, "isPullRequest": True}

    def _discuss(self, call: Call, name: str) -> Answer:
        """A pull request without commits."""
        repo, user, asked = self._repo(call, name), self._user(call), json.loads(call.body)
        if user is None or not asked["pullRequest"]:
            raise Refused(403 if user is None else 400, "only pull requests, and only of somebody")
        number = repo.pull(repo.head(), asked["title"], user.name)
        return _json({"title": asked["title"], "num": number, "pullRequest": True})

    def _info(self, call: Call, name: str, revision: str) -> Answer:
        repo = self._repo(call, name)
        sha, files = self._tree_of(repo, revision or "main")
        siblings = [_sibling(p, files) for p in sorted(files)]
        return _json(
            {"id": name, "modelId": name, "sha": sha, "private": repo.private, "gated": "auto" if repo.gated else False,
             "siblings": siblings, "tags": [], "downloads": 0, "likes": 0, "disabled": False}
        )  # fmt: skip

    def _tree(self, call: Call, name: str, revision: str, path: str) -> Answer:
        _, files = self._tree_of(self._repo(call, name), revision)
        found = [p for p in sorted(files) if not path or p.startswith(f"{path}/")]
        first = int(call.query.get("cursor", ["0"])[0])
        answer = _json([_entry(p, files) for p in found[first : first + PAGE]])
        if len(found) <= first + PAGE:
            return answer
        onward = f"{self.endpoint}{call.path}?recursive=true&cursor={first + PAGE}"
        return replace(answer, headers={**answer.headers, "Link": f'<{onward}>; rel="next"'})

    def _paths(self, call: Call, name: str, revision: str) -> Answer:
        _, files = self._tree_of(self._repo(call, name), revision)
        text = call.body.decode()
        wanted = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
        return _json([_entry(p, files) for p in wanted if p in files])

    def _preupload(self, call: Call, name: str, revision: str) -> Answer:
        pr = bool(call.query.get("create_pr"))
        repo = self._repo(call, name, write=not pr)
        _, files = self._tree_of(repo, revision)
        rows = []
        for row in json.loads(call.body)["files"]:
            mode = "lfs" if is_large(row["path"], row["size"], files) else "regular"
            held = files.get(row["path"])
            oid = None if held is None else (sha256(held) if mode == "lfs" else git_sha1(held))
            rows.append(
                {"path": row["path"], "uploadMode": mode, "shouldIgnore": False} | ({"oid": oid} if oid else {})
            )
        return _json({"files": rows})

    def _batch(self, call: Call, name: str) -> Answer:
        repo = self._repo(call, name, write=True)
        rows = [self._instruction(repo, o["oid"], o["size"]) for o in json.loads(call.body)["objects"]]
        return _json({"transfer": "basic", "objects": rows})

    def _instruction(self, repo: Repo, oid: str, nbytes: int) -> dict[str, Any]:
        row: dict[str, Any] = {"oid": oid, "size": nbytes, "authenticated": True}
        if oid in repo.objects:
            return row
        href, header = f"{self.storage}/objects/{repo.name}/{oid}", {}
        if self.part_nbytes is not None and nbytes > self.part_nbytes:
            href = f"{self.endpoint}/complete/{repo.name}/{oid}"
            header = {"chunk_size": str(self.part_nbytes)} | {
                str(n + 1): f"{self.storage}/parts/{repo.name}/{oid}/{n + 1}"
                for n in range(-(-nbytes // self.part_nbytes))
            }
        verify = {"href": f"{self.endpoint}/verify/{repo.name}", "header": {}}
        return row | {"actions": {"upload": {"href": href, "header": header}, "verify": verify}}

    def _object(self, call: Call, name: str, oid: str) -> Answer:
        return self._take(self.repos[name], oid, call.body)

    def _part(self, call: Call, name: str, oid: str, number: str) -> Answer:
        self.parts.setdefault((name, oid), {})[int(number)] = call.body
        return Answer(200, b"", {"ETag": f'"{hashlib.md5(call.body).hexdigest()}"'})

    def _complete(self, call: Call, name: str, oid: str) -> Answer:
        parts = self.parts.pop((name, oid), {})
        return self._take(self.repos[name], oid, b"".join(parts[n] for n in sorted(parts)))

    def _take(self, repo: Repo, oid: str, data: bytes) -> Answer:
        if oid in repo.objects:
            self.again.append(oid)
        if sha256(data) != oid:
            raise Refused(400, "sha256 mismatch")
        repo.objects[oid] = data
        return Answer(200)

    def _verify(self, call: Call, name: str) -> Answer:
        repo, asked = self._repo(call, name, write=True), json.loads(call.body)
        held = repo.objects.get(asked["oid"])
        if held is None or len(held) != asked["size"]:
            raise Refused(404, "no such object, or of another size")
        return _json({})

    def _branch(self, call: Call, name: str, branch: str) -> Answer:
        repo = self._repo(call, name, write=True)
        if branch in repo.refs:
            raise Refused(409, "Reference already exists")
        start, _ = self._tree_of(repo, json.loads(call.body or b"{}").get("startingPoint") or "main")
        repo.refs[branch] = start
        return _json({})

    def _commit(self, call: Call, name: str, revision: str) -> Answer:
        pr = bool(call.query.get("create_pr"))
        repo = self._repo(call, name, write=not pr)
        lines = [json.loads(line) for line in call.body.splitlines()]
        head, before = self._tree_of(repo, revision)
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, head):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(before)
        for line in lines[1:]:
            self._apply(repo, files, line["key"], line["value"])
        user = self._user(call)
        number = repo.pull(head, header["summary"], user.name if user else "") if pr else 0
        ref = f"refs/pr/{number}" if pr else revision
        sha = repo.commit(ref, files, header["summary"])
        said = {
            "success": True,
            "commitOid": sha,
            "commitUrl": f"{self.endpoint}/{name}/commit/{sha}",
            "hookOutput": "",
        }
        return _json(said | ({"pullRequestUrl": f"{self.endpoint}/{name}/discussions/{number}"} if pr else {}))

    def _apply(self, repo: Repo, files: dict[str, bytes], key: str, value: Mapping[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            if value["oid"] not in repo.objects:
                raise Refused(400, f"{path}: LFS pointer pointed to a file that does not exist")
            files[path] = repo.objects[value["oid"]]
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise Refused(400, f"unknown operation {key}")

    def _merge(self, call: Call, name: str, number: str) -> Answer:
        repo = self._repo(call, name, write=True)
        repo.commit("main", repo.files(f"refs/pr/{number}"), f"merge {number}")
        return _json({})

    def _resolve(self, call: Call, name: str, revision: str, path: str) -> Answer:
        repo = self._repo(call, name)
        if repo.gated and self._user(call) is None:
            raise Refused(401, "Access to this model is restricted", "GatedRepo")
        sha, files = self._tree_of(repo, revision)
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        data = files[path]
        large = is_large(path, len(data), files)
        etag = sha256(data) if large else git_sha1(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if large and self.cdn:
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{etag}"'}
            place = f"{self.storage}/cdn/{name}/{etag}?Signature=secret"
            return Answer(302, b"", headers | linked | {"Location": place})
        return _ranged(call, data, headers)

    def _cdn(self, call: Call, name: str, oid: str) -> Answer:
        if call.query.get("Signature") != ["secret"]:
            raise Refused(403, "no signature")
        return _ranged(call, self.repos[name].objects[oid], {"ETag": f'"{oid}"'})

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up."""


def _json(value: Any) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _sibling(path: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    data = files[path]
    row: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_sha1(data)}
    if is_large(path, len(data), files):
        row["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 135}
    return row


def _entry(path: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    data = files[path]
    row: dict[str, Any] = {"type": "file", "oid": git_sha1(data), "size": len(data), "path": path}
    if is_large(path, len(data), files):
        row["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 135}
    return row


def _ranged(call: Call, data: bytes, headers: Mapping[str, str]) -> Answer:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("range", ""))
    if match is None:
        return Answer(200, data, headers)
    first = int(match[1])
    stop = min(int(match[2]) + 1, len(data)) if match[2] else len(data)
    if first >= len(data):
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
    return Answer(206, data[first:stop], {**headers, "Content-Range": f"bytes {first}-{stop - 1}/{len(data)}"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        request = self.server.arrived(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        if request is not None and isinstance(request.fault, BrokenOff):
            self.rfile.read(min(request.fault.nbytes, int(self.headers.get("Content-Length", 0))))
            self._hang_up()
            return
        body = self._body()
        answer = Answer(404, b'{"error": "no such route"}') if request is None else self.server.answer(request, body)
        if answer.hangup:
            self._silence(answer)
            self._hang_up()
            return
        with contextlib.suppress(ConnectionError):
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body if answer.cut is None else memoryview(answer.body)[: answer.cut])
            self.wfile.flush()
        if answer.cut is not None:
            self._silence(answer)
            self._hang_up()

    def _silence(self, answer: Answer) -> None:
        """Until the client has gone, or the Hub ends."""
        while answer.silent and not self.server.over.wait(0.01):
            with contextlib.suppress(BlockingIOError):
                if not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        out = bytearray()
        while n := int(self.rfile.readline(), 16):
            out += self.rfile.read(n)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(out)

    def _hang_up(self) -> None:
        """As a reset, not as an end."""
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def running() -> Iterator[FakeHub]:
    """A Hub for the length of the block."""
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        hub.shutdown()
        hub.server_close()
        thread.join()


@contextlib.contextmanager
def as_the_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub that huggingface_hub takes for its own, in this process."""
    from huggingface_hub import constants

    with running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub
