"""Downloads that go wrong, from a server on this machine."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from datamodules.reading.download import DownloadError, download

pytestmark = pytest.mark.fault
CONTENT = bytes(range(256)) * 20
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers each path with the faults its name lists, one for each attempt; the last one is repeated."""

    daemon_threads = True
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        faults = self.path.strip("/").split(",")
        fault = faults[min(len(self.server.asked), len(faults) - 1)]
        self.server.asked.append(fault)
        if fault.isdecimal():
            self.send_error(int(fault))
        elif fault == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault in ("http", "file"):
            self.send_response(302)
            self.send_header("Location", {"http": "http://example.invalid/x", "file": "file:///etc/passwd"}[fault])
            self.end_headers()
        else:
            body = {"html": b"<html>log in</html>", "wrong": CONTENT[::-1], "short": CONTENT[:-9]}.get(fault, CONTENT)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8" if fault == "html" else "application/gzip")
            if fault != "endless":
                self.send_header("Content-Length", str(len(CONTENT) if fault == "short" else len(body)))
            self.end_headers()
            self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def fetch(server: Server, faults: str, target: Path, **keys: Any) -> Path:
    settings = {"sha256": SHA256, "max_bytes": 10_000, "timeout_s": 5.0, "wait_s": 0.01}
    return download(f"http://127.0.0.1:{server.server_port}/{faults}", target, **{**settings, **keys})


@pytest.mark.parametrize("faults", ["ok", "wrong,ok", "short,ok", "503,reset,ok", "endless"])
def test_fetched_perhaps_at_a_further_attempt(server: Server, tmp_path: Path, faults: str) -> None:
    target = tmp_path / "new" / "set.tar.gz"
    assert fetch(server, faults, target) == target and target.read_bytes() == CONTENT
    assert [entry.name for entry in target.parent.iterdir()] == ["set.tar.gz"]
    assert server.asked == faults.split(",")


@pytest.mark.parametrize(
    ("faults", "attempts", "message"),
    [
        ("wrong", 3, rf"5120 bytes arrived, and their sha256 is [0-9a-f]{{64}}, not {SHA256} \(attempt 3\)"),
        ("short", 3, "only 5111 of 5120 bytes arrived"),
        ("html", 1, "the server sent a web page instead of the file"),
        ("404", 1, "the server answers 404 Not Found"),
        ("503", 3, "the server answers 503"),
        ("reset", 3, "the connection broke|no connection"),
        ("http", 1, "it redirects to http://example.invalid/x, which is not https"),
        ("file", 1, "it redirects to file:///etc/passwd, which is not https|not allowed"),
    ],
)
def test_faults(server: Server, tmp_path: Path, faults: str, attempts: int, message: str) -> None:
    with pytest.raises(
        DownloadError, match=f"(?s)cannot download .*{message}.*put the file at {tmp_path}/set.tgz; its"
    ):
        fetch(server, faults, tmp_path / "set.tgz")
    assert len(server.asked) == attempts and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("faults", ["ok", "endless"])
def test_too_long(server: Server, tmp_path: Path, faults: str) -> None:
    with pytest.raises(DownloadError, match="more than the 5000( bytes)? that are allowed"):
        fetch(server, faults, tmp_path / "x", max_bytes=5000)
    assert server.asked == [faults] and list(tmp_path.iterdir()) == []


def test_offline(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/x"
        with pytest.raises(DownloadError, match=r"no connection \(.*refused.*\) \(attempt 2\).*To do it by hand"):
            download(address, tmp_path / "x", SHA256, 10_000, retries=1, wait_s=0.01)
    assert list(tmp_path.iterdir()) == []


def test_no_answer(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DownloadError, match="timed out"):
            download(f"http://localhost:{silent.getsockname()[1]}/x", tmp_path / "x", SHA256, 9, 0, timeout_s=0.2)


def test_a_file_that_is_there_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    assert download("https://example.invalid/x", tmp_path / "x", SHA256, 10) == tmp_path / "x"
    (tmp_path / "x").write_bytes(b"other")
    with pytest.raises(DownloadError, match="is not the expected file .*remove or replace it"):
        download("https://example.invalid/x", tmp_path / "x", SHA256, 10)
    assert (tmp_path / "x").read_bytes() == b"other"


@pytest.mark.parametrize("url", ["http://example.com/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "127.0.0.1/x"])
def test_only_https(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="is not https; only https addresses"):
        download(url, tmp_path / "x", SHA256, 10)
