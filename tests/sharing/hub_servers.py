"""Small Hugging Face and Kaggle on loopback: they keep what they get, and can be told to fail.

They speak what `huggingface_hub` and `kagglehub` ask of the real ones to create, upload, list and
download a model, no more. A fault is the name of a model: `me/lfs-cut` cuts the connection in the
middle of a file, `me/commit-500` answers the commit with 500.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "a-token-that-may-write"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def body(self, at_most=None):
        """What was sent; or only its beginning, before the connection is cut."""
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(length if at_most is None else min(length, at_most))

    def answer(self, status, data=b"", **headers):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        headers.setdefault("Content_Type", "application/json")
        headers.setdefault("Content_Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def cut(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def fails(self, name, stage):
        """Answers as the name of a model says; whether it did."""
        match = re.search(rf"{stage}-(\w+)", name)
        if not match:
            return False
        fault = match[1]
        self.server.faults.append(f"{name} {stage}")
        seen = self.server.faults.count(f"{name} {stage}")
        if fault == "cut":  # once
            if seen > 1:
                return False
            self.body(at_most=1000)
            self.cut()
        elif fault == "gone":  # each time
            self.body(at_most=1000)
            self.cut()
        else:
            self.body()
            self.answer(int(fault), {"error": f"a fault of {fault}"}, **self.of_fault(fault))
        return True

    def of_fault(self, fault):
        headers = {"X_Error_Message": f"a fault of {fault}"}
        if fault == "403":
            headers["X_Error_Code"] = "GatedRepo" if self.command in ("GET", "HEAD") else ""
        if fault == "404":
            headers["X_Error_Code"] = "RepoNotFound"
        if fault == "429":
            headers["Retry_After"] = "7"
        return headers

    def is_known(self):
        """Whether the token is one of a user; answers if not."""
        if TOKEN in (self.headers.get("Authorization") or ""):
            return True
        self.body()
        self.answer(401, {"error": "Invalid username or password."})
        return False


class HuggingFaceHandler(Handler):
    def do_POST(self):
        path = urlsplit(self.path).path
        if path == "/api/validate-yaml":
            return self.validate(json.loads(self.body()))
        if path == "/api/repos/create":
            return self.create()
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            if self.is_known() and not self.fails(match[1], match[2]):
                getattr(self, match[2])(self.server.repos[match[1]])
            return None
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return None if self.fails(match[1], "batch") else self.batch(match[1])
        self.body()
        return self.answer(404, {"error": f"no {path}"})

    def validate(self, asked):
        errors = [] if asked["content"].startswith("---\n") else [{"message": "no front matter"}]
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def create(self):
        if not self.is_known():
            return
        asked = json.loads(self.body())
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if self.fails_at_create(name):
            return
        url = f"{self.server.url}/{name}"
        if name in self.server.repos:
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        private = asked.get("visibility") == "private"
        self.server.repos[name] = {"files": {}, "private": private, "commits": [], "lfs": {}}
        self.answer(200, {"url": url, "name": name})

    def fails_at_create(self, name):
        match = re.search(r"create-(\d+)", name)
        if match:
            said = {"error": "no", "url": f"{self.server.url}/{name}"}
            self.answer(int(match[1]), said, **self.of_fault(match[1]))
        return bool(match)

    def preupload(self, repo):
        files = []
        for file in json.loads(self.body())["files"]:
            large = file["path"].endswith((".h5", ".safetensors", ".spm", ".model"))
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        self.answer(200, {"files": files})

    def batch(self, name):
        asked, objects = json.loads(self.body()), []
        for one in asked["objects"]:
            known = one["oid"] in self.server.repos[name]["lfs"]
            url = f"{self.server.url}/upload/{name}/{one['oid']}"
            actions = {} if known else {"actions": {"upload": {"href": url}}}
            objects.append({**one, **actions})
        kind = {"Content_Type": "application/vnd.git-lfs+json"}
        self.answer(200, {"objects": objects, "transfer": "basic"}, **kind)

    def do_PUT(self):
        _, _, owner, name, oid = self.path.split("/")
        if self.fails(f"{owner}/{name}", "lfs"):
            return
        data = self.body()
        assert hashlib.sha256(data).hexdigest() == oid
        self.server.puts.append(f"{owner}/{name}")
        self.server.repos[f"{owner}/{name}"]["lfs"][oid] = data
        self.answer(200)

    def commit(self, repo):
        files = dict(repo["files"])
        message = ""
        for line in self.body().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = repo["lfs"][value["oid"]]
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
        repo["files"] = files
        repo["commits"].append(message)
        oid = self.sha(repo)
        self.answer(200, {"commitUrl": f"{self.server.url}/c/{oid}", "commitOid": oid})

    def sha(self, repo):
        digest = hashlib.sha1(str(len(repo["commits"])).encode())
        for name, data in sorted(repo["files"].items()):
            digest.update(name.encode() + data)
        return digest.hexdigest()

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/\w+)?", path):
            return self.of_repo(match[1], self.info)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/\w+/?", path):
            return self.of_repo(match[1], self.tree)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", path):
            return self.of_repo(match[1], lambda repo: self.resolve(match[1], repo, match[2]))
        return self.answer(404, {"error": f"no {path}"})

    def of_repo(self, name, then):
        if self.fails(name, "get"):
            return None
        repo = self.server.repos.get(name)
        if repo is None or (repo["private"] and TOKEN not in self.headers.get("Authorization", "")):
            # As the real one: it does not say whether there is one.
            status = 404 if TOKEN in (self.headers.get("Authorization") or "") else 401
            return self.answer(
                status, {"error": "Repository not found"}, X_Error_Code="RepoNotFound"
            )
        return then(repo)

    def info(self, repo):
        name = next(n for n, r in self.server.repos.items() if r is repo)
        files = [
            {"rfilename": n, "size": len(d), "blobId": git(d)} for n, d in repo["files"].items()
        ]
        about = {"id": name, "modelId": name, "sha": self.sha(repo), "private": repo["private"]}
        self.answer(200, {**about, "siblings": files, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, repo):
        files = [
            {"type": "file", "path": name, "size": len(data), "oid": git(data)}
            for name, data in sorted(repo["files"].items())
        ]
        self.answer(200, files)

    def resolve(self, name, repo, path):
        if path not in repo["files"]:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        data = repo["files"][path]
        headers = {"X_Repo_Commit": self.sha(repo), "ETag": f'"{git(data)}"'}
        send(self, data, headers, cut=path.endswith(".h5") and re.search(r"file-(\w+)", name))


def send(handler, data, headers, cut):
    """A file, from where it is asked for; cut in the middle where that is the fault."""
    headers |= {"Accept_Ranges": "bytes", "Content_Type": "application/octet-stream"}
    start = int(re.match(r"bytes=(\d+)-", handler.headers.get("Range", "bytes=0-"))[1])
    part = data[start:]
    status = 206 if start else 200
    if start:
        headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    if cut and handler.command == "GET":
        handler.server.cuts += 1
        if cut[1] == "gone" or handler.server.cuts == 1:
            handler.send_response(status)
            for name, value in {**headers, "Content_Length": len(part)}.items():
                handler.send_header(name.replace("_", "-"), str(value))
            handler.end_headers()
            handler.wfile.write(part[: len(part) // 2])
            handler.wfile.flush()
            return handler.cut()
    return handler.answer(status, part, **headers)


def git(data):
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class KaggleHandler(Handler):
    def do_POST(self):
        if not self.is_known():
            return None
        call = urlsplit(self.path).path.rpartition("/")[2]
        length = int(self.headers.get("Content-Length") or 0)
        asked = json.loads(self.rfile.read(length) or b"{}")
        name = f"{asked.get('ownerSlug')}/{asked.get('modelSlug') or asked.get('slug')}"
        match = re.search(rf"{call}-(\d+|cut)", name)
        if match and match[1] == "cut":
            return self.cut()
        if match:
            data = {"code": int(match[1]), "message": f"a fault of {match[1]}"}
            return self.answer(int(match[1]), data, **self.of_fault(match[1]))
        return getattr(self, call)(name, asked)

    def GetModel(self, name, asked):
        if name not in self.server.models:
            return self.answer(404, {"code": 404, "message": "Not found"})
        return self.answer(200, {"slug": name})

    def CreateModel(self, name, asked):
        self.server.models[name] = {"private": asked["isPrivate"], "instances": {}}
        self.answer(200, {"ref": name})

    def StartBlobUpload(self, name, asked):
        token = f"token-{len(self.server.blobs)}"
        self.server.blobs[token] = [asked["name"], int(asked["contentLength"]), b""]
        self.answer(200, {"token": token, "createUrl": f"{self.server.url}/blob/{token}"})

    def do_PUT(self):
        token = self.path.rpartition("/")[2]
        blob = self.server.blobs[token]
        where = self.headers.get("Content-Range", "")
        if where.startswith("bytes */"):  # how much has come?
            if len(blob[2]) == blob[1]:
                return self.answer(200)
            so_far = {"Range": f"bytes=0-{len(blob[2]) - 1}"} if blob[2] else {}
            return self.answer(308, **so_far)
        if blob[0].endswith(".h5") and self.server.cut_blobs:
            self.server.cut_blobs -= 1
            blob[2] += self.body(at_most=50_000)
            return self.cut()
        blob[2] += self.body()
        return self.answer(200)

    def CreateModelInstance(self, name, asked):
        key = f"{asked['body']['framework']}/{asked['body']['instanceSlug']}".lower()
        instances = self.server.models[name]["instances"]
        if key in instances:
            return self.answer(200, {"error": "Already exists", "errorCode": 409})
        instances[key] = {"license": asked["body"].get("licenseName"), "versions": []}
        return self.add_version(instances[key], asked)

    def CreateModelInstanceVersion(self, name, asked):
        key = f"{asked['framework']}/{asked['instanceSlug']}".lower()
        self.add_version(self.server.models[name]["instances"][key], asked)

    def add_version(self, instance, asked):
        def files(folder, prefix=""):
            for file in folder.get("files", ()):
                name, _, data = self.server.blobs[file["token"]]
                yield prefix + name, data
            for inner in folder.get("directories", ()):
                yield from files(inner, f"{prefix}{inner['name']}/")

        instance["versions"].append(dict(files(asked["body"])))
        self.server.notes.append(asked["body"].get("versionNotes", ""))
        self.answer(200, {"ref": "done"})

    def instance(self, name, asked):
        key = f"{asked['framework']}/{asked['instanceSlug']}".lower()
        return self.server.models.get(name, {"instances": {}})["instances"].get(key)

    def GetModelInstance(self, name, asked):
        found = self.instance(name, asked)
        if found is None:
            return self.answer(404, {"code": 404, "message": "Not found"})
        return self.answer(200, {"versionNumber": len(found["versions"])})

    def ListModelInstanceVersionFiles(self, name, asked):
        files = self.instance(name, asked)["versions"][asked["versionNumber"] - 1]
        self.answer(200, {"files": [{"name": n, "size": len(d)} for n, d in files.items()]})

    def DownloadModelInstanceVersion(self, name, asked):
        found = self.instance(name, asked)
        files = found["versions"][asked["versionNumber"] - 1] if found else {}
        if asked.get("path") not in files:
            return self.answer(404, {"code": 404, "message": "Not found"})
        query = f"{name}/{asked['framework']}/{asked['instanceSlug']}/{asked['versionNumber']}"
        url = f"{self.server.url}/file?of={query}&path={asked['path']}"
        return self.answer(302, Location=url)

    def do_GET(self):
        query = parse_qs(urlsplit(self.path).query)
        owner, model, framework, slug, number = query["of"][0].split("/")
        key, path = f"{framework}/{slug}".lower(), query["path"][0]
        data = self.server.models[f"{owner}/{model}"]["instances"][key]["versions"][
            int(number) - 1
        ][path]
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        headers = {"X_Goog_Hash": f"md5={md5}"}
        cut = path.endswith(".h5") and re.search(r"file-(\w+)", f"{owner}/{model}")
        send(self, data, headers, cut)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler, **state):
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.faults, self.cuts = [], 0
        vars(self).update(state)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A connection that was cut is no error of a test's."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


def hugging_face():
    return _Server(HuggingFaceHandler, repos={}, puts=[])


def kaggle():
    return _Server(KaggleHandler, models={}, blobs={}, notes=[], cut_blobs=0)
