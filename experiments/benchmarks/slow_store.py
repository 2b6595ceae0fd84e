"""A folder as a bucket of Google Cloud Storage on this machine, with a stated latency and a stated bandwidth.

    python experiments/benchmarks/slow_store.py FOLDER [--latency-ms=30] [--megabytes-per-second=200] [--port=0]

It prints its port and answers what gcsfs and array_record ask: a bucket `bucket`, listings, metadata, contents from any byte to
any byte. Each answer begins after the latency; all bodies together leave at the bandwidth. /counts gives requests for contents
and bytes of them, and the request after it counts from 0. Set STORAGE_EMULATOR_HOST (gcsfs) and CLOUD_STORAGE_EMULATOR_ENDPOINT
(array_record) to http://127.0.0.1:PORT.
"""

import argparse
import asyncio
import base64
import contextlib
import functools
import json
import time
import urllib.parse
from pathlib import Path

import google_crc32c

PIECE = 2**16  # bytes that leave at once


@functools.cache
def describe(path: Path, root: Path) -> dict[str, str]:
    """Metadata of a file as the store's JSON API gives them."""
    crc32c = base64.b64encode(google_crc32c.value(path.read_bytes()).to_bytes(4, "big")).decode()
    name, kind = path.relative_to(root).as_posix(), "application/octet-stream"
    about = {"kind": "storage#object", "bucket": "bucket", "name": name, "size": str(path.stat().st_size), "crc32c": crc32c}
    times = dict.fromkeys(("timeCreated", "updated"), "2024-01-01T00:00:00.000Z")
    return {**about, **times, "id": f"bucket/{name}/1", "generation": "1", "metageneration": "1", "contentType": kind}


class Store:
    """Answers requests; `free` is when the link has sent all that was given to it."""

    def __init__(self, root: Path, latency: float, bandwidth: float):
        self.root, self.latency, self.bandwidth = root, latency, bandwidth
        self.free, self.counts = 0.0, {"requests": 0, "bytes": 0}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of a connection, one after another."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
                await self.answer(writer, urllib.parse.urlsplit(head[0].split()[1]), headers)
        writer.close()

    async def answer(self, writer: asyncio.StreamWriter, url: urllib.parse.SplitResult, headers: dict[str, str]) -> None:
        """Answers one request after the latency."""
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/counts":
            found, self.counts = self.counts, {"requests": 0, "bytes": 0}
            return self.send(writer, 200, json.dumps(found).encode())
        await asyncio.sleep(self.latency)
        _, _, name = url.path.partition("/b/bucket/o")
        path = self.root / urllib.parse.unquote(name.lstrip("/"))
        if not name.lstrip("/"):
            return self.send(writer, 200, json.dumps(self.list(query)).encode())
        if not path.is_file():
            return self.send(writer, 404, b'{"error": {"code": 404, "message": "no such object"}}')
        if query.get("alt") != "media":
            return self.send(writer, 200, json.dumps(describe(path, self.root)).encode())
        size = path.stat().st_size
        first, _, last = headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        begin, end = (int(first), min(int(last or size - 1) + 1, size)) if first else (max(0, size - int(last)), size)
        status, where = (206, f"bytes {begin}-{end - 1}/{size}") if "range" in headers else (200, "")
        self.counts["requests"] += 1
        writer.write(self.head(status, end - begin, where))
        with path.open("rb") as file:
            file.seek(begin)
            while begin < end and (piece := file.read(min(PIECE, end - begin))):
                self.free = max(self.free, time.perf_counter()) + len(piece) / self.bandwidth
                if (early := self.free - time.perf_counter()) > 0.002:  # sleeps of less are not kept
                    await asyncio.sleep(early)
                writer.write(piece)
                self.counts["bytes"] += len(piece)
                await writer.drain()
                begin += len(piece)

    def list(self, query: dict[str, str]) -> dict[str, object]:
        """The objects under a prefix, and with a delimiter the folders directly in it."""
        prefix, items, folders = query.get("prefix", ""), [], set()
        for path in sorted(path for path in self.root.rglob("*") if path.is_file()):
            rest = (name := path.relative_to(self.root).as_posix()).removeprefix(prefix)
            if name.startswith(prefix):
                folder, is_inside, _ = rest.partition(query.get("delimiter") or "\0")
                folders.add(f"{prefix}{folder}/") if is_inside else items.append(describe(path, self.root))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def send(self, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        """A small answer."""
        writer.write(self.head(status, len(body)) + body)

    @staticmethod
    def head(status: int, length: int, where: str = "") -> bytes:
        """The lines before a body."""
        lines = [f"HTTP/1.1 {status} OK", "Content-Type: application/json", f"Content-Length: {length}", "x-goog-generation: 1"]
        return "\r\n".join([*lines, *([f"Content-Range: {where}"] if where else []), "\r\n"]).encode()


async def run(folder: Path, latency: float, bandwidth: float, port: int) -> None:
    """Serves until it is ended."""
    store = Store(folder.resolve(), latency, bandwidth)
    server = await asyncio.start_server(store.serve, "127.0.0.1", port, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-ms", type=float, default=30.0)
    parser.add_argument("--megabytes-per-second", type=float, default=200.0)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(options.folder, options.latency_ms / 1e3, options.megabytes_per_second * 1e6, options.port))
