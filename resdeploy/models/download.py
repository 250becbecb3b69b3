"""Weights from the network into the cache, checked before they are anything."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

from resdeploy import __version__, store
from resdeploy.errors import EnvironmentFailure, IntegrityError
from resdeploy.records import Progress

TIMEOUT_S = 30.0  # of one read, not of the whole


def fetch(url: str, expected: str, out: Path, *, progress: Progress | None = None) -> str:
    """Downloads `url` to `out` and returns its SHA-256 in hexadecimal; a wrong or short file never gets there.

    Args:
        url: http or https.
        expected: the SHA-256, or at least its first digits, in hexadecimal.
        out: where to; its folder is made.
        progress: called with bytes done and in total (0: the server does not say).

    Raises:
        EnvironmentFailure: the server cannot be reached or refuses.
        IntegrityError: another file than expected, or only a part of it.
        NotWritable, DiskFull: as `store.atomic_path`.
    """
    request = urllib.request.Request(url, headers={"User-Agent": f"resdeploy/{__version__}"})  # noqa: S310 (http only)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310 (http only)
    except (OSError, http.client.HTTPException) as e:
        raise _unreachable(url, expected, e) from e
    sha = hashlib.sha256()
    head = b""
    done = 0
    with response, store.atomic_path(out) as temporary:
        total = int(response.headers.get("Content-Length") or 0)
        with temporary.open("wb") as file:
            for chunk in _chunks(response, url, expected):
                head = head or chunk[:64]
                sha.update(chunk)
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(f"downloading {out.name}", done, total)
        if total and done != total:
            raise IntegrityError(
                f"{url} gave {done} of {total} bytes", cause="The connection was cut", fix="Run the command again"
            )
        digest = sha.hexdigest()
        if not digest.startswith(expected):
            page = head.lstrip()[:1] == b"<"
            raise IntegrityError(
                f"{url} is not the expected file (sha256 {digest[:16]}..., expected {expected}{_dots(expected)})",
                cause="The server or a proxy sent a web page instead"
                if page
                else "It was changed or damaged on the way",
                fix="Nothing was kept; try another network, or give a file with --weights",
            )
    return digest


def _chunks(response: HTTPResponse, url: str, expected: str) -> Iterator[bytes]:
    """The body; a failing network is told from a failing disk here, since both are OSErrors."""
    while True:
        try:
            chunk = response.read(store.CHUNK_BYTES)
        except http.client.IncompleteRead as e:
            chunk = e.partial  # short, as the caller will find
        except OSError as e:
            raise _unreachable(url, expected, e) from e
        if not chunk:
            return
        yield chunk


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
