"""Downloads from a server on this machine: whole, cut off and resumed, damaged, refused."""

import hashlib
import http.server
import os
import threading

import pytest
import torch

from core.errors import DownloadError, ModelError
from core.potentials import load, mace_zoo
from core.potentials.download import fetch
from core.potentials.mace import UNGUARDED
from tests.core.potentials.test_convert import checkpoint

DATA = bytes(range(256)) * 4000


class Server(http.server.ThreadingHTTPServer):
    """Offers `data` with ranges and a tag; may cut off, refuse, or offer another version."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.tag, self.cut_after, self.status, self.asked = DATA, '"one"', None, None, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/some.model"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if server.status:
            self.send_error(server.status)
            return
        begin = 0
        if self.headers.get("Range") and self.headers.get("If-Range") == server.tag:
            begin = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        rest = server.data[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", server.tag)
        self.end_headers()
        self.wfile.write(rest[: server.cut_after])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_a_file_arrives_with_progress_and_is_fetched_once(server, tmp_path):
    seen = []
    target = tmp_path / "folder" / "some.model"
    good = hashlib.sha256(DATA).hexdigest()
    fetch(server.url, target, sha256=good, progress=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == DATA and seen[-1] == (len(DATA), len(DATA)) and len(seen) > 2
    assert fetch(server.url, target) == target and len(server.asked) == 1
    assert [p.name for p in target.parent.iterdir()] == ["some.model"]


def test_a_download_cut_off_goes_on_where_it_ended(server, tmp_path):
    server.cut_after = 300_000
    with pytest.raises(DownloadError, match=r"was lost; 0\.3 MB are kept"):
        fetch(server.url, tmp_path / "some.model")
    server.cut_after = None
    assert fetch(server.url, tmp_path / "some.model").read_bytes() == DATA
    assert server.asked == [None, "bytes=262144-"]  # whole blocks are kept


def test_another_version_is_not_appended_to_the_first(server, tmp_path):
    server.cut_after = 300_000
    with pytest.raises(DownloadError):
        fetch(server.url, tmp_path / "some.model")
    server.cut_after, server.tag, server.data = None, '"two"', DATA[::-1]
    assert fetch(server.url, tmp_path / "some.model").read_bytes() == DATA[::-1]


def test_a_damaged_file_is_refused_and_removed(server, tmp_path):
    with pytest.raises(DownloadError, match="as it was published"):
        fetch(server.url, tmp_path / "some.model", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_fetched_is_said(server, tmp_path):
    server.status = 404
    with pytest.raises(DownloadError, match="refused the download \\(404"):
        fetch(server.url, tmp_path / "some.model")
    server.server_close()
    with pytest.raises(DownloadError, match="No connection to 127"):
        fetch(server.url, tmp_path / "some.model", timeout=2)
    for url in ("http://example.org/x.model", "file:///etc/hosts", "ftp://127.0.0.1/x"):
        with pytest.raises(DownloadError, match="only https"):
            fetch(url, tmp_path / "some.model")


def test_a_published_model_is_fetched_converted_and_used_by_its_name(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWISE_HOME", str(tmp_path / "home"))
    server.data = checkpoint(tmp_path, torch.float32).read_bytes()
    with pytest.raises(ModelError, match="flywise download mace-mp:small"):
        load("mace-mp:small")
    with pytest.raises(ModelError, match="MIT licence, as a pickle"):
        mace_zoo.get("mace-mp:small", consent=False, url=server.url)
    assert server.asked == []
    mace_zoo.get("mace-mp:small", consent=True, url=server.url)
    assert load("mace-mp:small").elements == (1, 6, 8)
    assert mace_zoo.get("mace-mp:small", consent=False).is_dir()
    with pytest.raises(ModelError, match="no model 'mace-mp:tiny'; accepted: mace-mp:small"):
        mace_zoo.get("mace-mp:tiny", consent=True)


def test_a_fetched_file_that_is_no_model_is_not_kept(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWISE_HOME", str(tmp_path / "home"))
    with pytest.raises(ModelError, match="could not be converted"):
        mace_zoo.get("mace-mp:small", consent=True, url=server.url)
    server.data = checkpoint(tmp_path, torch.float32).read_bytes()
    mace_zoo.get("mace-mp:small", consent=True, url=server.url)
    assert load("mace-mp:small").elements == (1, 6, 8)


def test_what_is_there_with_another_checksum_is_fetched_anew(server, tmp_path):
    target = tmp_path / "some.model"
    target.write_bytes(b"left over")
    assert fetch(server.url, target, sha256=hashlib.sha256(DATA).hexdigest()) == target
    assert target.read_bytes() == DATA


def test_names_that_cannot_be_used_say_why():
    for name in ("mace-omol:extra_large", "mace-polar:polar-1-s"):
        with pytest.raises(ModelError, match="cannot be used: "):
            mace_zoo.get(name, consent=True)


def test_all_names_have_a_licence():
    known = mace_zoo.foundations()
    assert UNGUARDED not in os.environ
    assert len(known) >= 19 and set(known) >= mace_zoo.UNDER_MIT
    assert known["mace-off:small"].licence == mace_zoo.ASL
    assert all(f.url.startswith("https://") for f in known.values())
