"""Downloads of weights into the cache, checked before anything reads them."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from resdeploy import __version__, store
from resdeploy.errors import EnvironmentFailure, IntegrityError, UsageError
from resdeploy.records import Progress

TIMEOUT_S = 30.0  # of one read, not of the whole
PATIENCE_S, SLOWEST_BYTES_S = 60.0, 1000.0  # after so long, slower than this on average is no download
MAX_BYTES = 4 << 30  # the largest checkpoint of the zoo has 0.6 GB


def fetch(url: str, expected: str, out: Path, *, progress: Progress | None = None) -> str:
    """Downloads `url` to `out` and returns its SHA-256 in hexadecimal; a wrong or short file never gets there.

    Args:
        url: http or https.
        expected: the SHA-256, or at least its first digits, in hexadecimal.
        out: where to; its folder is made.
        progress: called with bytes done and in total (0: the server does not say).

    Raises:
        EnvironmentFailure: the server cannot be reached or refuses, sends too slowly, or sends from https to http.
        IntegrityError: another file than expected, only a part of it, or one without end.
        NotWritable, DiskFull: as `store.atomic_path`.
    """
    response = _open(url, expected)
    sha = hashlib.sha256()
    head = b""
    received = 0
    with response, store.atomic_path(out) as temporary:
        total = response.length or 0  # what the headers say, where that is a number
        with temporary.open("wb") as file:
            for chunk in _chunks(response, url, expected):
                head = head or chunk[:64]
                sha.update(chunk)
                file.write(chunk)
                received += len(chunk)
                _check_size(url, max(received, total))
                if progress:
                    progress(f"downloading {out.name}", received, total)
        if total and received != total:
            raise IntegrityError(
                f"{url} gave {received} of {total} bytes", cause="The connection was cut", fix="Run the command again"
            )
        digest = sha.hexdigest()
        _check_digest(url, digest, expected, head)
    return digest


def _open(url: str, expected: str) -> HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": f"resdeploy/{__version__}"})  # noqa: S310 (http only)
    try:
        response: HTTPResponse = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT_S)
    except (OSError, http.client.HTTPException, ValueError) as e:  # ValueError: a host or a redirect that is no URL
        raise _unreachable(url, expected, e) from e
    return response


def _check_size(url: str, size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise IntegrityError(
            f"{url} gives more than {MAX_BYTES >> 30} GiB",
            cause="It is not the expected file, which no weights are as large as",
            fix="Nothing was kept; try another network, or give a file with --weights",
        )


def _check_digest(url: str, digest: str, expected: str, head: bytes) -> None:
    """`head`: how the file begins, for the likely cause."""
    if digest.startswith(expected):
        return
    page = head.lstrip()[:1] == b"<"
    raise IntegrityError(
        f"{url} is not the expected file (sha256 {digest[:16]}..., expected {expected}{_dots(expected)})",
        cause="The server or a proxy sent a web page instead" if page else "It was changed or damaged on the way",
        fix="Nothing was kept; try another network, or give a file with --weights",
    )


def _chunks(response: HTTPResponse, url: str, expected: str) -> Iterator[bytes]:
    """The body; a failing network is told from a failing disk here, since both are OSErrors."""
    start_s, received = time.monotonic(), 0
    while True:
        try:
            chunk = response.read1(store.CHUNK_BYTES)  # what has come: `read` would wait for all of it
        except http.client.IncompleteRead as e:
            chunk = e.partial  # short, as the caller will find
        except (OSError, http.client.HTTPException) as e:
            raise _unreachable(url, expected, e) from e
        if not chunk:
            return
        received += len(chunk)
        waited_s = time.monotonic() - start_s
        if waited_s > PATIENCE_S and received < waited_s * SLOWEST_BYTES_S:
            raise _unreachable(url, expected, TimeoutError(f"only {received:,} bytes came in {waited_s:.0f} s"))
        yield chunk


class _Redirects(urllib.request.HTTPRedirectHandler):
    """As urllib's, but whoever asked for https is not sent on to what anybody on the way can read and change."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.HTTPError(req.full_url, code, f"and leads from https to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def refuse_malformed(url: str) -> None:
    """Refuses what is no URL of a server.

    Raises:
        UsageError: it is not one.
    """
    try:
        parts = urlsplit(url)
        good = bool(parts.hostname) and parts.port != 0 and url.isascii() and url.isprintable() and " " not in url
    except ValueError:  # brackets that are no address, a port that is no number
        good = False
    if not good:
        raise UsageError(f"{url!r} is not a URL", fix="Write http(s)://HOST/FILE, other signs percent-encoded (%20)")


def _unreachable(url: str, expected: str, error: Exception) -> EnvironmentFailure:
    if isinstance(error, urllib.error.HTTPError):
        reason = f"The server answered {error.code} {error.reason}"
        error.close()
    else:
        reason = f"{getattr(error, 'reason', '') or error or type(error).__name__}"
    return EnvironmentFailure(
        f"cannot download {url}",
        cause=reason,
        fix=f"Download it elsewhere (its SHA-256 is {expected}{_dots(expected)}) and give the file with --weights",
        code="E-DOWNLOAD",
    )


def _dots(digest: str) -> str:
    return "" if len(digest) == 64 else "..."
