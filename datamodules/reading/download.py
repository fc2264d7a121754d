"""Downloads that are whole and the right file, or are not there at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BLOCK = 2**20
LOOPBACK = ("127.0.0.1", "::1", "localhost")
WAIT_S = 1.0  # before the second attempt; doubled for each further one


class DownloadError(OSError):
    """A file that could not be fetched; the message says why and what to do by hand."""


class _Again(Exception):
    """A failure that another attempt may cure."""


class _Final(Exception):
    """A failure that it will not."""


def download(
    url: str,
    target: Path,
    sha256: str,
    max_bytes: int,
    retries: int = 2,
    timeout_s: float = 60.0,
    wait_s: float = WAIT_S,
) -> Path:
    """Fetch ``url`` to ``target``: into a file ``.part`` beside it, checked, then renamed.

    A target that is there already is checked and kept, so a file that was brought by hand needs no network.

    Args:
        url: https; http only from this machine itself.
        target: the file to make.
        sha256: of the right content, in hexadecimal.
        max_bytes: give up on anything longer.
        retries: further attempts after a failure that may pass (connection, server error, short or wrong content).
        timeout_s: seconds to wait for an answer.
        wait_s: seconds before the second attempt; twice as long before each further one.

    Returns:
        ``target``.

    Raises:
        ValueError: an address that is not https.
        DownloadError: the file could not be had, or the one that is there has another hash; no ``.part`` is left.
    """
    _check_address(url)
    if target.exists():
        if file_sha256(target) != sha256:
            raise DownloadError(f"{target} is not the expected file (its sha256 is not {sha256}); remove or replace it")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")  # its own: several processes may download
    for attempt in range(retries + 1):
        try:
            _fetch(url, part, sha256, max_bytes, timeout_s)
            os.replace(part, target)
            return target
        except (_Again, _Final, OSError) as error:
            if isinstance(error, _Again) and attempt < retries:
                time.sleep(wait_s * 2**attempt)
                continue
            raise DownloadError(
                f"cannot download {url}: {error} (attempt {attempt + 1}). To do it by hand, fetch that address and "
                f"put the file at {target.absolute()}; its sha256 must be {sha256}"
            ) from error
        finally:
            part.unlink(missing_ok=True)
    raise AssertionError("the last attempt returns or raises")


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_address(url: str) -> None:
    address = urlsplit(url)
    if address.scheme != "https" and not (address.scheme == "http" and address.hostname in LOOPBACK):
        raise ValueError(f"{url!r} is not https; only https addresses are downloaded from")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses that might have been given in the first place."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            _check_address(newurl)
        except ValueError as error:
            raise _Final(f"it redirects to {newurl}, which is not https") from error
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, part: Path, sha256: str, max_bytes: int, timeout_s: float) -> None:
    """One attempt; ``part`` is then whole, right and on the disk."""
    request = urllib.request.Request(url, headers={"User-Agent": "vision-recipes"})
    try:
        with (
            urllib.request.build_opener(_Redirects).open(request, timeout=timeout_s) as answer,
            part.open("wb") as file,
        ):
            found, count = _copy(answer, file, max_bytes)
            file.flush()
            os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        passing = error.code >= 500 or error.code in (408, 429)
        raise (_Again if passing else _Final)(f"the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _Again(f"no connection ({error.reason})") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Again(f"the connection broke ({error or type(error).__name__})") from error
    if found != sha256:
        if "html" in (answer.headers.get_content_type() or ""):
            raise _Final("the server sent a web page instead of the file")
        raise _Again(f"{count} bytes arrived, and their sha256 is {found}, not {sha256}")


def _copy(answer: Any, file: Any, max_bytes: int) -> tuple[str, int]:
    """Write the body to ``file``; its sha256 and length."""
    announced = answer.headers.get("Content-Length", "")
    expected = int(announced) if announced.isdecimal() and len(announced) < 20 else None
    digest, count = hashlib.sha256(), 0
    if expected is not None and expected > max_bytes:
        raise _Final(f"the server announces {expected} bytes, more than the {max_bytes} that are allowed")
    while block := answer.read(BLOCK):
        count += len(block)
        if count > max_bytes:
            raise _Final(f"more than the {max_bytes} bytes that are allowed arrive")
        digest.update(block)
        file.write(block)
    if expected is not None and count < expected:
        raise _Again(f"only {count} of {expected} bytes arrived")
    return digest.hexdigest(), count
