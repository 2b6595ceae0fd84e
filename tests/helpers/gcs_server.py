"""A server of objects that speaks what TensorStore, gcsfs and google-cloud-storage use of Google Cloud Storage's JSON API.

    python tests/helpers/gcs_server.py [--latency=0.03] [--folder=DIR]

prints its address, and serves until its input ends; a line of input is answered with the counts so far, as JSON. With a folder
the objects are files DIR/bucket/name, which may be damaged there.

Unlike gcp-storage-emulator it has generations and conditional writes (`ifGenerationMatch`), serves many requests at once, adds
a stated latency, fails on demand, and counts requests and bytes of each client. A client is named by its token, which
TensorStore takes from GOOGLE_AUTH_TOKEN_FOR_TESTING; gcsfs sends none to an emulator.
"""

import argparse
import dataclasses
import itertools
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)(?:/(rewriteTo|copyTo)/b/([^/]+)/o/([^/]+))?")


@dataclasses.dataclass(frozen=True)
class Stored:
    """An object, whose content is here or in a file."""

    kept: bytes | Path
    generation: int

    @property
    def content(self) -> bytes:
        if isinstance(self.kept, bytes):
            return self.kept
        return self.kept.read_bytes() if self.kept.exists() else b""


class Server(ThreadingHTTPServer):
    """Buckets in memory or in a folder; every name exists as a bucket.

    Attributes:
        objects: {"bucket/name": Stored}.
        fault: (method, "bucket/name", client) -> None, or the status to answer with; 0 resets the connection. It may sleep.
        requests, received: by client and method, and bytes of objects by client.
        written: names in the order in which they were written.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, latency: float = 0.0, folder: Path | None = None):
        self.folder = folder
        self.objects: dict[str, Stored] = {}
        self.fault: Callable[[str, str, str], int | None] = lambda method, name, client: None
        self.latency = latency
        self.requests, self.received, self.written = Counter(), Counter(), []
        self.uploads: dict[str, tuple[str, dict, bytearray]] = {}
        self.lock, self.numbers = threading.Lock(), itertools.count(1_700_000_000_000_000)
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def make_stored(self, name: str, content: bytes) -> Stored:
        number = next(self.numbers)
        if self.folder is None:
            return Stored(content, number)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return Stored(path, number)

    def find(self, name: str) -> Stored | None:
        """Returns an object, unless it was removed, also as a file."""
        stored = self.objects.get(name)
        return None if stored and isinstance(stored.kept, Path) and not stored.kept.exists() else stored

    def pop(self, name: str) -> Stored | None:
        found = self.find(name)
        self.objects.pop(name, None)
        if found and isinstance(found.kept, Path):
            found.kept.unlink()
        return found

    def put(self, name: str, content: bytes) -> None:
        """Replaces an object, as someone else would."""
        self.objects[name] = self.make_stored(name, content)

    def clear(self) -> None:
        """Removes all objects, counts and faults."""
        self.objects.clear()
        self.fault = lambda method, name, client: None
        for each in (self.requests, self.received, self.written):
            each.clear()

    def environment(self, client: str = "process") -> dict[str, str]:
        """Returns the variables with which a process takes this server for Google's."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": client,
            "GOOGLE_CLOUD_PROJECT": "project",
        }

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        pass  # a client that was killed


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server

    def log_message(self, *_) -> None:
        pass

    def handle_one(self) -> None:
        server, parts = self.server, urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        body = self.read_body()
        client = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if server.latency:
            time.sleep(server.latency)
        if parts.path.startswith("/batch"):
            return self.batch(body, client)
        name = self.find_name(parts.path, query, body)
        server.requests[client, self.command] += 1
        status = server.fault(self.command, name, client)
        if status == 0:
            self.close_connection = True
            self.connection.close()
            return None
        if status:
            return self.answer(status, {"error": {"code": status, "message": "as asked for"}})
        return self.route(self.command, parts.path, query, body, client)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_one

    def find_name(self, path: str, query: dict, body: bytes) -> str:
        if match := OBJECT.fullmatch(path):
            return f"{match[1]}/{unquote(match[2])}"
        bucket = path.partition("/b/")[2].partition("/")[0]
        if "upload_id" in query and query["upload_id"] in self.server.uploads:
            return self.server.uploads[query["upload_id"]][0]
        given = query.get("name", query.get("prefix", ""))
        if query.get("uploadType") in ("multipart", "resumable") and not given:
            about = self.parts(self.headers["Content-Type"], body)[0] if query["uploadType"] == "multipart" else body
            given = json.loads(about or b"{}").get("name", "")
        return f"{bucket}/{given}"

    def route(self, method: str, path: str, query: dict, body: bytes, client: str) -> None:
        server = self.server
        if path.startswith("/upload/"):
            return self.upload(path.partition("/b/")[2].partition("/")[0], query, body, client)
        if match := OBJECT.fullmatch(path):
            name = f"{match[1]}/{unquote(match[2])}"
            if match[3]:
                if not (found := server.find(name)):
                    return self.answer(404)
                made = self.store(f"{match[4]}/{unquote(match[5])}", found.content, query, client)
                done = {"done": True, "resource": made, "objectSize": made["size"], "totalBytesRewritten": made["size"]}
                return self.answer(200, done if match[3] == "rewriteTo" else made)
            if method == "DELETE":
                return self.answer(self.delete(name, query))
            media = query.get("alt") == "media" or path.startswith("/download")
            return self.send_object(name, query) if media else self.send_about(name)
        if path.rstrip("/").endswith("/o"):
            return self.answer(200, self.list_objects(path.split("/")[-2], query))
        if method == "GET" and "/b/" in path:
            return self.answer(200, {"kind": "storage#bucket", "name": path.rsplit("/", 1)[-1], "location": "HERE"})
        return self.answer(404)

    def read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, content: dict | None = None, headers: dict | None = None) -> None:
        data = b"" if content is None else json.dumps(content).encode()
        if content is None and status >= 400:
            data = json.dumps({"error": {"code": status, "message": f"status {status}"}}).encode()
        self.send(status, data, {"Content-Type": "application/json", **(headers or {})})

    def send(self, status: int, data: bytes, headers: dict) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def about(self, name: str) -> dict:
        stored = self.server.objects[name]
        bucket, _, inside = name.partition("/")
        return {
            "kind": "storage#object",
            "id": f"{name}/{stored.generation}",
            "name": inside,
            "bucket": bucket,
            "size": str(len(stored.kept) if isinstance(stored.kept, bytes) else stored.kept.stat().st_size),
            "generation": str(stored.generation),
            "metageneration": "1",
            "etag": str(stored.generation),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "storageClass": "STANDARD",
            "contentType": "application/octet-stream",
            "mediaLink": f"{self.server.url}/download/storage/v1/b/{bucket}/o/{inside.replace('/', '%2F')}?alt=media",
        }

    def is_refused(self, name: str, query: dict) -> bool:
        """True if a condition on the generation does not hold; 0 is that of no object."""
        stored = self.server.find(name)
        generation = stored.generation if stored else 0
        wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
        return (wanted is not None and int(wanted) != generation) or (unwanted is not None and int(unwanted) == generation)

    def store(self, name: str, content: bytes, query: dict, client: str) -> dict | None:
        with self.server.lock:
            if self.is_refused(name, query):
                return None
            self.server.put(name, bytes(content))
            self.server.received[client] += len(content)
            self.server.written.append(name)
            return self.about(name)

    def delete(self, name: str, query: dict) -> int:
        with self.server.lock:
            if self.is_refused(name, query):
                return 412
            return 404 if self.server.pop(name) is None else 204

    def send_about(self, name: str) -> None:
        with self.server.lock:
            content = self.about(name) if self.server.find(name) else None
        self.answer(200 if content else 404, content)

    def send_object(self, name: str, query: dict) -> None:
        with self.server.lock:
            stored = self.server.find(name)
            refused = stored is not None and self.is_refused(name, query)
        if stored is None:
            return self.answer(404)
        if refused:
            status = 304 if "ifGenerationNotMatch" in query else 412
            return self.send(status, b"", {"x-goog-generation": str(stored.generation)})
        headers = {"x-goog-generation": str(stored.generation), "Content-Type": "application/octet-stream"}
        headers |= {"ETag": f'"{stored.generation}"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        content = stored.content
        size = len(content)
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match or not size:
            return self.send(200, content, headers)
        first = int(match[1]) if match[1] else max(0, size - int(match[2]))
        last = min(size, int(match[2]) + 1) if match[1] and match[2] else size
        if first >= size:
            return self.send(416, b"", {"Content-Range": f"bytes */{size}"})
        return self.send(206, content[first:last], {**headers, "Content-Range": f"bytes {first}-{last - 1}/{size}"})

    def list_objects(self, bucket: str, query: dict) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset", "")
        items, prefixes, limit = [], set(), int(query.get("maxResults", 1000))
        with self.server.lock:
            names = sorted(
                name.partition("/")[2]
                for name in self.server.objects
                if name.startswith(f"{bucket}/{prefix}") and self.server.find(name)
            )
            names = [name for name in names if name >= start and (not end or name < end)]
            names = [name for name in names if name > query.get("pageToken", "")]
            answer: dict = {"kind": "storage#objects"}
            for name in names:
                rest = name[len(prefix) :]
                if delimiter and delimiter in rest:
                    prefixes.add(prefix + rest[: rest.index(delimiter) + 1])
                else:
                    items.append(self.about(f"{bucket}/{name}"))
                if len(items) == limit:
                    answer["nextPageToken"] = name
                    break
        return {**answer, "items": items, "prefixes": sorted(prefixes)}

    def upload(self, bucket: str, query: dict, body: bytes, client: str) -> None:
        kind, uploads = query.get("uploadType"), self.server.uploads
        if kind == "multipart":
            about, content = self.parts(self.headers["Content-Type"], body)
            made = self.store(f"{bucket}/{json.loads(about)['name']}", content, query, client)
        elif "upload_id" in query:
            name, conditions, data = uploads[query["upload_id"]]
            if data is not None and "*/" not in self.headers.get("Content-Range", ""):
                data += body
            total = self.headers.get("Content-Range", "/").rsplit("/", 1)[1]
            if total in ("", "*") or int(total) != len(data):
                return self.answer(308, headers={"Range": f"bytes=0-{len(data) - 1}"} if data else {})
            made = self.store(name, bytes(data), conditions, client)
        elif kind == "resumable":
            given = json.loads(body or b"{}")
            number = str(next(self.server.numbers))
            uploads[number] = (f"{bucket}/{given.get('name', query.get('name'))}", query, bytearray())
            place = f"{self.server.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
            return self.answer(200, {}, {"Location": place})
        else:
            made = self.store(f"{bucket}/{query['name']}", body, query, client)
        return self.answer(412 if made is None else 200, made)

    @staticmethod
    def parts(kind: str, body: bytes) -> list[bytes]:
        boundary = re.search(r'boundary="?([^";]+)', kind)[1].encode()
        end = b"\r\n" if body.startswith(b"--" + boundary + b"\r\n") else b"\n"
        found = body.split(b"--" + boundary)[1:-1]
        return [part.partition(end + end)[2].removesuffix(end) for part in found]

    def batch(self, body: bytes, client: str) -> None:
        """Answers a batch of deletions."""
        message = BytesParser().parsebytes(b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body)
        answers = []
        for part in message.get_payload():
            method, path = part.get_payload().split()[:2]
            match = OBJECT.fullmatch(urlsplit(path).path)
            name = f"{match[1]}/{unquote(match[2])}"
            self.server.requests[client, method] += 1
            status = self.server.fault(method, name, client) or self.delete(name, {})
            ident = f"Content-ID: <response-{part['Content-ID'].strip('<>')}>\r\n" if part["Content-ID"] else ""
            answers.append(f"Content-Type: application/http\r\n{ident}\r\nHTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n")
        text = "".join(f"--batch\r\n{answer}\r\n" for answer in answers) + "--batch--\r\n"
        self.send(200, text.encode(), {"Content-Type": "multipart/mixed; boundary=batch"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--folder", type=Path, help="of the objects; by default they are in memory")
    options = parser.parse_args()
    server = Server(options.latency, options.folder)
    print(server.url, flush=True)
    for _ in sys.stdin:
        requests = {" ".join(key): count for key, count in server.requests.items()}
        print(json.dumps({"received": server.received, "requests": requests, "objects": len(server.objects)}), flush=True)
