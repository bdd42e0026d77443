"""Fetch a large file: what arrived is kept, and the next attempt goes on from there.

Beside the file while it is on its way: `NAME.part`, and `NAME.part.json` with its address and the
server's tag for this version, without which nothing is appended. Published checksums are checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from core.errors import DownloadError

BLOCK = 1 << 18
TIMEOUT_S = 30.0
"""Without a byte for so long, a connection is taken for dead."""
LARGEST_BYTES = 8 << 30
LOCAL = ("localhost", "127.0.0.1", "::1")

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here, and with those in all where the server says so."""


def fetch(
    url: str, target: Path, *, sha256: str | None = None, progress: Progress | None = None,
    timeout: float = TIMEOUT_S,
) -> Path:  # fmt: skip
    """Download `url` to the file `target`; return it. Nothing is done where it is there already.

    What is there, but not with the checksum asked for, is fetched anew.

    Raises:
        DownloadError: no connection, refused, cut off, or not what was published; says what to do.
    """
    if target.is_file() and sha256 in (None, _checksum(target)):
        return target
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOCAL):
        raise DownloadError(f"{url} is not fetched: only https addresses are accepted.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        _receive(url, part, progress, timeout)
    except requests.RequestException as error:
        raise DownloadError(_why(error, parts.hostname, part)) from error
    if sha256 is not None and (found := _checksum(part)) != sha256:
        _drop(part)
        raise DownloadError(
            f"{target.name} did not arrive as it was published (SHA-256 {found[:12]}…, not "
            f"{sha256[:12]}…); it was removed. Try again, or ask its publisher."
        )
    part.replace(target)
    _drop(part)
    return target


def _receive(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    have, tag = _kept(url, part)
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None and length.isdigit() else None
        if total is not None and total > LARGEST_BYTES:
            raise DownloadError(f"{url} is larger than {LARGEST_BYTES >> 30} GB; not fetched.")
        _note(url, part, answer.headers)
        with open(part, "ab" if have else "wb") as file:
            for block in answer.iter_content(BLOCK):
                file.write(block)
                have += len(block)
                if have > LARGEST_BYTES:
                    raise DownloadError(f"{url} does not end; the attempt was given up.")
                if progress is not None:
                    progress(have, total)
    if total is not None and have != total:
        raise requests.ConnectionError(f"{have} of {total} bytes arrived")


def _kept(url: str, part: Path) -> tuple[int, str]:
    """Return how much of the same version is here already, and the version's tag."""
    try:
        known: Any = json.loads(_notes(part).read_text(encoding="utf-8"))
        if known["url"] == url and known["tag"]:
            return part.stat().st_size, str(known["tag"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, ""


def _note(url: str, part: Path, headers: Any) -> None:
    tag = headers.get("ETag", "")
    strong = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
    _notes(part).write_text(json.dumps({"url": url, "tag": strong}), encoding="utf-8")


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _why(error: requests.RequestException, host: str | None, part: Path) -> str:
    if error.response is not None:
        status = error.response.status_code
        return f"{host} refused the download ({status} {error.response.reason})."
    kept = part.stat().st_size if part.is_file() else 0
    if kept:
        return (
            f"The connection to {host} was lost; {kept / 1e6:.1f} MB are kept. Run the same "
            "command again to go on from there."
        )
    return (
        f"No connection to {host}. Is this machine online? A model can also be fetched elsewhere, "
        "copied here and converted: flywise convert FILE FOLDER."
    )
