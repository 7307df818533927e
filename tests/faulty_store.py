"""A store of our own on loopback, which speaks as much of the protocol of GCS as reading needs.

It counts requests and bytes, answers as late as it is told, and with the faults that it is told.
"""

import asyncio
import json
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from object_servers import environment

PAGE = 1000  # names in an answer of GCS


class Request(NamedTuple):
    """What was asked for: `list`, `stat`, `read` or `write`, of an object, and the bytes sent.

    `who` is what the process that asks has in `GS_USER_PROJECT`.
    """

    kind: str
    name: str
    range: tuple[int, int] | None = None
    answered: int = 0
    who: str = ""


class FaultyStore:
    """Objects by name, and the faults of the next answers.

    Attributes:
        objects: The content of each object.
        generations: The generation of each object that is not 1.
        requests: What was asked for so far.
        fault: Returns for a request what is wrong with the answer: a status, `reset` in the middle
            of the body, `page` for a page of HTML, `short` for half of the bytes, `wrong` for one
            bit flipped, `replaced` for another generation, `late` by a second, `hang`; None if
            nothing is.
        told: Is called with what a process says by a request to `/tell`.
        latency_s: How late each answer is.
        url: Where it is served.
        writable: Whether objects can be written.
        tls: The certificate with which it answers as a proxy (`CONNECT`) for every host.
    """

    def __init__(self):
        self.url = ""
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.requests: list[Request] = []
        self.fault: Callable[[Request], str | int | None] = lambda _: None
        self.told: Callable[[dict[str, str]], None] = lambda _: None
        self.latency_s = 0.0
        self.writable = True
        self.tls: ssl.SSLContext | None = None

    def count(self, kind: str, part: str = "") -> int:
        return sum(each.kind == kind and part in each.name for each in self.requests)

    def put(self, directory: Path, to: str) -> None:
        """Takes the files of a directory, but no indexes."""
        for file in directory.rglob("*"):
            if file.is_file() and ".record_index" not in file.parts:
                self.objects[f"{to}/{file.relative_to(directory)}"] = file.read_bytes()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, target, _ = head[0].split(" ")
                if method == "CONNECT" and self.tls is not None:
                    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                    await writer.start_tls(self.tls)
                    continue
                headers = {
                    key.lower(): value
                    for key, _, value in (line.partition(": ") for line in head[1:] if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                if not await self._answer(method, target, headers, body, writer):
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, method, target, headers, body, writer) -> bool:
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/tell":
            self.told(query)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return True
        name = urllib.parse.unquote(url.path.partition("/o/")[2]) or query.get("name", "")
        if method == "GET" and not url.path.startswith("/storage/"):  # as TensorFlow reads
            name, query = urllib.parse.unquote(url.path[1:].partition("/")[2]), {"alt": "media"}
        status, content, extra = 404, b"{}", {}
        asked = None
        if method == "POST":
            kind = "write"
            status = 200 if self.writable else 403
            if self.writable:
                self.objects[name] = body
                content = self._described(name)
        elif not name:
            kind = "list"
            status, content = 200, self._page(query)
            name = query.get("startOffset", "")
        elif query.get("alt") != "media":
            kind = "stat"
            if name in self.objects:
                status, content = 200, self._described(name)
        else:
            kind = "read"
            if name in self.objects:
                status, content, extra, asked = self._part(name, headers.get("range"))
        request = Request(kind, name, asked, len(content), query.get("userProject", ""))
        self.requests.append(request)
        fault = self.fault(request)
        if isinstance(fault, int):
            status, content, extra = fault, b'{"error": "secret-token"}', {}
        elif fault == "page":
            content = b"<html>secret-token</html>"
        elif fault == "hang":
            await asyncio.sleep(3600)
        elif fault == "short":
            content = content[: len(content) // 2]
            if asked is not None:
                stop = asked[0] + len(content) - 1
                total = len(self.objects[name])
                extra = extra | {"Content-Range": f"bytes {asked[0]}-{stop}/{total}"}
        elif fault == "late":
            await asyncio.sleep(1.0)
        elif fault == "replaced":
            extra = extra | {"x-goog-generation": 2}
        elif fault == "wrong" and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(content)}"]
        lines += [f"{key}: {value}" for key, value in extra.items()]
        answer = ("\r\n".join(lines) + "\r\n\r\n").encode() + content
        if fault == "reset":
            writer.write(answer[: len(answer) - max(len(content) // 2, 1)])
            await writer.drain()
            writer.transport.abort()
            return False
        writer.write(answer)
        await writer.drain()
        return True

    def _part(self, name: str, wanted: str | None):
        content = self.objects[name]
        size = len(content)
        extra = {"x-goog-generation": self.generations.get(name, 1)}
        if wanted is None:
            return 200, content, extra, None
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if start >= size:
            return 416, b"", {}, (start, stop)
        extra["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return 206, content[start:stop], extra, (start, stop)

    def _described(self, name: str) -> bytes:
        number = self.generations.get(name, 1)
        size = len(self.objects[name])
        found = {"name": name, "generation": str(number), "size": str(size)}
        return json.dumps(found | {"updated": "2026-01-01T00:00:00.000Z"}).encode()

    def _page(self, query: dict[str, str]) -> bytes:
        start = query.get("pageToken") or query.get("startOffset", "")
        end = query.get("endOffset", "\U0010ffff")
        names = sorted(name for name in self.objects if start <= name < end)
        page = {"items": [{"name": name} for name in names[:PAGE]]}
        if len(names) > PAGE:
            page["nextPageToken"] = names[PAGE]
        return json.dumps(page).encode()

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[Self]:
        """Serves an empty store, to which `gs://` leads meanwhile."""
        store = cls()
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(store.serve, "127.0.0.1", 0))
        port = server.sockets[0].getsockname()[1]
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        try:
            store.url = f"http://127.0.0.1:{port}"
            with environment(TENSORSTORE_GCS_HTTP_URL=store.url):
                yield store
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks))
            loop.close()
