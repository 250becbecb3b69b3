"""models/weights.py and models/download.py, against a real server on localhost."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPMessage as Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from resdeploy import places, store
from resdeploy.errors import (
    EnvironmentFailure,
    IntegrityError,
    MalformedInput,
    MissingInput,
    NotWritable,
    UnknownName,
    UsageError,
)
from resdeploy.models import download, weights, zoo
from resdeploy.records import Weights

SPEC = zoo.spec("resnet50")


@dataclass
class Site:
    """What the server gives by path; `cut` answers with half of what it promises."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut: bool = False
    length: str = ""  # in place of the true Content-Length
    redirect: str = ""  # where every request is sent on to
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server on localhost in torchvision's place."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append(self.path)
            if site.redirect:
                self.send_response(302)
                self.send_header("Location", site.redirect)
                self.end_headers()
                return
            body = site.files.get(self.path)
            self.send_response(200 if body is not None else 404)
            body = body if body is not None else b"<html>not here</html>"
            self.send_header("Content-Length", site.length or str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if site.cut else body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("RESDEPLOY_WEIGHTS_URL", site.url)
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def cached() -> list[Path]:
    return [p for p in places.cache_dir().rglob("*") if p.is_file()]


def publish(site: Site, monkeypatch: pytest.MonkeyPatch, content: bytes) -> str:
    """Puts `content` where resnet50's V1 file is expected, under the hash that `content` has."""
    digest = hashlib.sha256(content).hexdigest()
    name = f"resnet50-{digest[:8]}.pth"
    rows = tuple(
        row if row.file != "resnet50-0676ba61.pth" else zoo._file("resnet50", 1, digest[:8], row.top1, 92.862, 256)
        for row in zoo.PUBLISHED
    )
    monkeypatch.setattr(zoo, "PUBLISHED", rows)
    site.files[f"/{name}"] = content
    return name


def test_random_weights_have_a_seed_and_no_file() -> None:
    """They are announced as such, with what makes them again."""
    assert weights.resolve("random", SPEC, seed=3) == (None, Weights(source="random", seed=3))


def test_a_file_is_itself_with_its_hash(tmp_path: Path) -> None:
    """Nothing of it is read yet but its bytes."""
    path = tmp_path / "w.pth"
    path.write_bytes(b"anything")
    found, origin = weights.resolve(str(path), SPEC)
    assert found == path
    assert origin == Weights(source="w.pth", sha256=hashlib.sha256(b"anything").hexdigest())


def test_a_published_file_is_downloaded_once_and_its_bytes_are_the_servers(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three megabytes in several chunks, progress to the end, then the cache; capitals as torchvision writes them."""
    content = os.urandom(3_000_000)
    name = publish(site, monkeypatch, content)
    seen: list[tuple[int, int]] = []
    path, origin = weights.resolve("imagenet1k_v1", SPEC, progress=lambda _, done, total: seen.append((done, total)))
    assert path is not None
    assert path.read_bytes() == content
    assert path.is_relative_to(places.cache_dir())
    assert origin == Weights(source=f"{site.url}/{name}", sha256=hashlib.sha256(content).hexdigest())
    assert len(seen) > 1
    assert seen[-1] == (3_000_000, 3_000_000)
    assert weights.resolve("IMAGENET1K_V1", SPEC) == (path, origin)
    assert site.requests == [f"/{name}"]


def test_a_damaged_cache_entry_is_downloaded_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash is checked at every use, not only on arrival."""
    content = os.urandom(1000)
    publish(site, monkeypatch, content)
    path, origin = weights.resolve("imagenet1k_v1", SPEC)
    assert path is not None
    path.write_bytes(b"damaged")
    assert weights.resolve("imagenet1k_v1", SPEC) == (path, origin)
    assert path.read_bytes() == content
    assert len(site.requests) == 2


@pytest.mark.parametrize("content", [b"<html>Please log in</html>", b"another file", b""])
def test_another_file_than_the_published_one_is_an_integrity_error(site: Site, content: bytes) -> None:
    """A portal's web page above all; nothing stays in the cache."""
    site.files["/resnet50-0676ba61.pth"] = content
    with pytest.raises(IntegrityError) as failure:
        weights.resolve("imagenet1k_v1", SPEC)
    assert failure.value.exit_status == 5
    assert "0676ba61" in failure.value.what
    assert ("web page" in failure.value.cause) == content.startswith(b"<")
    assert cached() == []


def test_a_short_body_is_an_integrity_error(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection closed early; nothing stays in the cache."""
    publish(site, monkeypatch, os.urandom(100_000))
    site.cut = True
    with pytest.raises(IntegrityError, match="50000 of 100000 bytes"):
        weights.resolve("imagenet1k_v1", SPEC)
    assert cached() == []


def test_a_length_that_is_no_number_is_passed_over(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash says whether all of the file has come."""
    content = os.urandom(1000)
    publish(site, monkeypatch, content)
    site.length = "abc"
    path, _ = weights.resolve("imagenet1k_v1", SPEC)
    assert path is not None
    assert path.read_bytes() == content


@pytest.mark.parametrize("length", ["", "abc"])
def test_a_body_that_is_larger_than_any_checkpoint_is_not_kept(
    site: Site, monkeypatch: pytest.MonkeyPatch, length: str
) -> None:
    """Whether the server says how large it is, or sends without end."""
    publish(site, monkeypatch, os.urandom(5000))
    site.length = length
    monkeypatch.setattr(download, "MAX_BYTES", 4999)
    with pytest.raises(IntegrityError, match="gives more than"):
        weights.resolve("imagenet1k_v1", SPEC)
    assert cached() == []


def test_a_body_that_comes_too_slowly_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """On average over the whole download: single reads may each be in time."""
    publish(site, monkeypatch, os.urandom(5000))
    monkeypatch.setattr(download, "PATIENCE_S", 0.0)
    monkeypatch.setattr(download, "SLOWEST_BYTES_S", float("inf"))
    with pytest.raises(EnvironmentFailure) as failure:
        weights.resolve("imagenet1k_v1", SPEC)
    assert "bytes came in" in failure.value.cause
    assert cached() == []


def test_a_redirect_is_followed_but_not_from_https_to_http(site: Site) -> None:
    """The second is asked of the handler: a server with a certificate is not at hand."""
    site.redirect = "http://[odd/x.pth"
    with pytest.raises(EnvironmentFailure):
        weights.resolve("imagenet1k_v1", SPEC)
    handler = download._Redirects()
    asked = {scheme: urllib.request.Request(f"{scheme}://127.0.0.1/a.pth") for scheme in ("http", "https")}
    for scheme, to in (("http", "http"), ("http", "https"), ("https", "https")):
        sent_on = handler.redirect_request(asked[scheme], io.BytesIO(), 302, "Found", Message(), f"{to}://127.0.0.1/b")
        assert sent_on is not None
        assert sent_on.full_url == f"{to}://127.0.0.1/b"
    with pytest.raises(urllib.error.HTTPError, match="from https to http"):
        handler.redirect_request(asked["https"], io.BytesIO(), 302, "Found", Message(), "http://127.0.0.1/b")


@pytest.mark.parametrize(
    "url", ["http://[::1/w-0676ba61.pth", "https:///w-0676ba61.pth", "http://127.0.0.1:port/w-0676ba61.pth",
            "http://127.0.0.1:99999/w-0676ba61.pth", "http://127.0.0.1/a b-0676ba61.pth", "http://127.0.0.1/ä-0676ba61.pth",
            "http:w-0676ba61.pth"]
)  # fmt: skip
def test_what_is_no_url_is_a_usage_error(url: str) -> None:
    """Before anything is asked of a network."""
    with pytest.raises(UsageError, match="is not a URL"):
        weights.resolve(url, SPEC)


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_a_host_that_cannot_be_a_name_is_an_environment_failure(host: str) -> None:
    """What the resolver refuses is said as if the host were not found."""
    with pytest.raises(EnvironmentFailure):
        weights.resolve(f"http://{host}/w-0676ba61.pth", SPEC)


def test_a_missing_file_on_the_server_is_said_with_its_status(site: Site) -> None:
    """404, and the page that came with it is not taken for weights."""
    with pytest.raises(EnvironmentFailure) as failure:
        weights.resolve("imagenet1k_v2", SPEC)
    assert "404" in failure.value.cause
    assert failure.value.exit_status == 6
    assert cached() == []


def test_offline_the_error_names_the_url_and_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the file can be fetched elsewhere and checked."""
    monkeypatch.setenv("RESDEPLOY_WEIGHTS_URL", "http://127.0.0.1:9/models/")
    with pytest.raises(EnvironmentFailure) as failure:
        weights.resolve("imagenet1k_v2", SPEC)
    assert "http://127.0.0.1:9/models/resnet50-11ad3fa6.pth" in failure.value.what
    assert "11ad3fa6" in failure.value.fix
    assert cached() == []


def test_the_table_points_to_torchvisions_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mirror variable, the URL is download.pytorch.org's."""
    monkeypatch.delenv("RESDEPLOY_WEIGHTS_URL", raising=False)
    assert weights._published_url("imagenet1k_v2", "resnet152") == (
        "https://download.pytorch.org/models/resnet152-f82ba261.pth"
    )


def test_a_url_states_its_hash_after_it_or_in_its_name(site: Site) -> None:
    """Both forms; two files of one name do not meet in the cache."""
    contents = [os.urandom(100), os.urandom(100)]
    for i, content in enumerate(contents):
        digest = hashlib.sha256(content).hexdigest()
        site.files[f"/{i}/my%20net.safetensors"] = content
        path, origin = weights.resolve(f"{site.url}/{i}/my%20net.safetensors#sha256={digest.upper()}", SPEC)
        assert path is not None
        assert path.read_bytes() == content
        assert origin.sha256 == digest
        assert "#" not in origin.source
    digest = hashlib.sha256(contents[0]).hexdigest()
    site.files[f"/net-{digest[:8]}.th"] = contents[0]
    assert weights.resolve(f"{site.url}/net-{digest[:8]}.th", SPEC)[1].sha256 == digest
    assert len(cached()) == 3


@pytest.mark.parametrize("end", ["net.pth", "net_bf931d71.pth", "net.pth#sha256=abc", "net-0676ba61.pth#md5=0676ba61"])
def test_a_url_without_a_hash_is_refused_before_anything_is_fetched(site: Site, end: str) -> None:
    """The error shows what to append."""
    with pytest.raises(UsageError) as failure:
        weights.resolve(f"{site.url}/{end}", SPEC)
    assert "sha256" in failure.value.fix
    assert site.requests == []


def test_a_wrong_stated_hash_is_an_integrity_error(site: Site) -> None:
    """Although the file name's own digits match."""
    content = b"x" * 10
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    site.files[f"/{name}"] = content
    with pytest.raises(IntegrityError):
        weights.resolve(f"{site.url}/{name}#sha256={'0' * 64}", SPEC)
    assert cached() == []


@pytest.mark.parametrize(
    ("name", "asked", "known"), [("resnet18", "imagenet1k_v2", "imagenet1k_v1"), ("resnet20", "imagenet1k_v1", "")]
)
def test_weights_that_nobody_published_are_unknown(name: str, asked: str, known: str) -> None:
    """What exists is named."""
    with pytest.raises(UnknownName) as failure:
        weights.resolve(asked, zoo.spec(name))
    assert known in failure.value.cause


def test_a_misspelt_source_is_a_missing_input_that_lists_the_words() -> None:
    """Neither a file nor a word."""
    with pytest.raises(MissingInput, match="imagenet_v1"):
        weights.resolve("imagenet_v1", SPEC)


def test_a_saved_checkpoint_says_what_it_is_and_loads_back_exactly(tmp_path: Path) -> None:
    """The description is in the file itself, the origin in its sidecar."""
    torch = pytest.importorskip("torch")
    spec = zoo.spec("resnet20", input_shape=(1, 8, 8), labels=("zero", "eins", "二"))
    net, origin, out = zoo.create(spec, seed=5), Weights(source="random", seed=5), tmp_path / "net.safetensors"
    artifact = weights.save(net, spec, out, origin)
    assert weights.spec_in(out) == spec
    assert (artifact.format, artifact.model, artifact.weights) == ("checkpoint", spec, origin)
    assert store.load(out) == artifact
    other = zoo.create(spec, seed=6)
    weights.load_into(other, out)
    expected = net.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in other.state_dict().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.safetensors", "net.safetensors.json"]


def test_channels_last_and_tied_weights_can_be_saved(tmp_path: Path) -> None:
    """safetensors itself refuses both."""
    torch = pytest.importorskip("torch")
    spec = zoo.spec("resnet20")
    net: Any = zoo.create(spec)
    net.to(memory_format=torch.channels_last)
    net.layer1[0].conv1.weight = net.layer1[0].conv2.weight
    weights.save(net, spec, tmp_path / "w.safetensors", Weights(source="random", seed=0))
    other: Any = zoo.create(spec, seed=1)
    weights.load_into(other, tmp_path / "w.safetensors")
    assert torch.equal(other.layer1[0].conv1.weight, net.layer1[0].conv2.weight)


def test_a_checkpoint_and_its_sidecar_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    """Also where another one is overwritten: a group that shares a folder can read both."""
    spec = zoo.spec("resnet20", classes=2)
    before = os.umask(0o027)
    try:
        for _ in range(2):
            weights.save(zoo.create(spec), spec, tmp_path / "n.safetensors", Weights(source="random", seed=0))
            assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
    finally:
        os.umask(before)


def test_saving_where_a_file_stands_for_the_folder_leaves_nothing(tmp_path: Path) -> None:
    """Neither the checkpoint nor a sidecar."""
    pytest.importorskip("torch")
    spec = zoo.spec("resnet20")
    (tmp_path / "taken").write_text("")
    with pytest.raises(NotWritable):
        weights.save(zoo.create(spec), spec, tmp_path / "taken" / "w.safetensors", Weights(source="random", seed=0))
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_files_of_others_say_nothing_about_their_network(tmp_path: Path) -> None:
    """A pickle and a safetensors file without our description give None; a broken description is an error."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth")
    save_file({"a": torch.zeros(2)}, tmp_path / "b.safetensors")
    assert weights.spec_in(tmp_path / "a.pth") is None
    assert weights.spec_in(tmp_path / "b.safetensors") is None
    save_file({"a": torch.zeros(2)}, tmp_path / "c.safetensors", metadata={weights.SPEC_KEY: '{"name": "x", "odd": 1}'})
    with pytest.raises(MalformedInput, match="odd"):
        weights.spec_in(tmp_path / "c.safetensors")
    with pytest.raises(MissingInput):
        weights.spec_in(tmp_path / "none.safetensors")


def test_resolving_and_reading_a_description_need_no_torch(tmp_path: Path) -> None:
    """Commands that only look at a checkpoint do not pay for torch."""
    pytest.importorskip("torch")
    spec = zoo.spec("resnet20")
    weights.save(zoo.create(spec), spec, tmp_path / "w.safetensors", Weights(source="random", seed=0))
    code = (
        "import sys; from pathlib import Path; from resdeploy.models import weights, zoo; path = Path(sys.argv[1]); "
        "assert weights.spec_in(path) == zoo.spec('resnet20'); weights.resolve(str(path), zoo.spec('resnet20')); "
        "print('torch' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "w.safetensors")], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"
