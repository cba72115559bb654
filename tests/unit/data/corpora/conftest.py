"""A web server that can lose connections, change its files and forget how to serve parts of them."""

import functools
import hashlib
import http.server
import re
import threading
from dataclasses import dataclass, field

import pytest


@dataclass
class Site:
    """files: path to content; faults: one entry per coming request, "" for none, a status code, or "cut"."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[str | int] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    ranges: bool = True
    tags: bool = True


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, site: Site, *args):
        self.site = site
        super().__init__(*args)

    def log_message(self, *args):
        """Silent."""

    def do_GET(self):
        self.site.requests.append((self.path, self.headers.get("Range")))
        fault = self.site.faults.pop(0) if self.site.faults else ""
        content = self.site.files.get(self.path)
        if content is None or isinstance(fault, int):
            self.send_error(fault or 404)
            return
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        start = self._start(content, tag)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.site.tags:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

    def _start(self, content: bytes, tag: str) -> int:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        unchanged = self.headers.get("If-Range") in (None, tag)
        return int(wanted[1]) if wanted and unchanged and self.site.ranges else 0


@pytest.fixture
def site():
    served = Site()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, served))
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()
