"""`softclip data download` against a local server that answers, refuses, stalls and lies; nothing else is reached."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepare_samples import image_bytes, jpeg, put, rows
from tar_samples import member, tar_bytes
from typer.testing import CliRunner

from softclip_cli.app import app
from softclip_cli.data.download.url_list import open_list
from softclip_cli.data.prepare import PrepareOptions, prepare
from softclip_cli.errors import DataError, UsageError

pytest.importorskip("aiohttp", reason="the extra `download` is not installed")
from softclip_cli.data.download.fetch import FetchOptions, opted_out
from softclip_cli.data.download.run import DownloadOptions, download

QUICK = FetchOptions(connections=16, timeout=1.5, retries=1, pause=0.01, max_bytes=200_000)


class Handler(BaseHTTPRequestHandler):
    """What the server does is in the path."""

    protocol_version = "HTTP/1.1"
    hits: ClassVar[Counter[str]] = Counter()
    agents: ClassVar[set[str]] = set()
    released: ClassVar[threading.Event] = threading.Event()

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in ({"Content-Type": "image/jpeg"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path.endswith(".tar"):
            number = int(self.path[1:-4])
            self.answer(tar_bytes([member(f"{number}.jpg", jpeg(number)), member(f"{number}.txt", "over http")]))
            return
        kind, _, number = self.path.strip("/").partition("/")
        self.hits[self.path] += 1
        self.agents.add(self.headers["User-Agent"])
        try:
            getattr(self, f"do_{kind}")(int(number or 0))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def do_good(self, number: int) -> None:
        self.answer(jpeg(number))

    def do_png(self, number: int) -> None:
        self.answer(image_bytes(number, (12, 9), "PNG"))  # sent as a JPEG, which does not matter

    def do_status(self, number: int) -> None:
        self.answer(b"no", number)

    def do_once(self, number: int) -> None:
        """Fails the first time."""
        if self.hits[self.path] == 1:
            self.answer(b"busy", 503, Retry_After="0")
        else:
            self.answer(jpeg(number))

    def do_html(self, number: int) -> None:
        self.answer(b"<html>log in to see this picture</html>")

    def do_short(self, number: int) -> None:
        """Says more than it sends."""
        self.answer(jpeg(number), length=100_000)
        self.close_connection = True

    def do_cut(self, number: int) -> None:
        """Sends half a picture and says that this is all."""
        self.answer(jpeg(number, (200, 150))[:4000])

    def do_stall(self, number: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"\xff\xd8")
        self.wfile.flush()
        self.released.wait(60)
        self.close_connection = True

    def do_endless(self, number: int) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(2000):
            self.wfile.write(b"x" * 10_000)
        self.close_connection = True

    def do_huge(self, number: int) -> None:
        self.answer(b"x", length=10**12)
        self.close_connection = True

    def do_loop(self, number: int) -> None:
        self.answer(b"", 302, Location=f"/loop/{number + 1}")

    def do_move(self, number: int) -> None:
        self.answer(b"", 301, Location=f"/good/{number}")

    def do_file(self, number: int) -> None:
        self.answer(b"", 302, Location="file:///etc/passwd")

    def do_noai(self, number: int) -> None:
        self.answer(jpeg(number), X_Robots_Tag="noindex, noai")

    def do_empty(self, number: int) -> None:
        self.answer(b"")

    def do_drop(self, number: int) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def do_slow(self, number: int) -> None:
        time.sleep(0.05)
        self.answer(jpeg(number))

    def do_HEAD(self) -> None:
        self.answer(b"", 200 if self.path.endswith("tar") else 404)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *arguments: object) -> None:
        """Clients that hang up are what these tests are about."""


@pytest.fixture
def server() -> Iterator[str]:
    Handler.hits.clear()
    Handler.released.clear()
    running = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    Handler.released.set()
    running.shutdown()
    running.server_close()


def write_list(path: Path, addresses: list[str]) -> Path:
    return put(path, "".join(f"caption {number}\t{url}\n" for number, url in enumerate(addresses)))


KINDS = {  # what the server does, and the cause that is counted
    "good/1": "", "good/2": "", "png/3": "", "move/4": "", "once/5": "", "cut/6": "",
    "status/404": "http-404", "status/403": "http-403", "status/500": "http-500", "html": "not-an-image", "short": "cut-off",
    "stall": "timeout", "endless": "too-large", "huge": "too-large", "loop": "too-many-redirects", "file": "no-http-address",
    "noai": "opted-out", "empty": "empty-image", "drop": "no-connection",
}  # fmt: skip


def test_every_way_of_failing_is_counted_and_the_rest_can_be_prepared(tmp_path: Path, server: str) -> None:
    addresses = [f"{server}/{kind}" for kind in KINDS]
    addresses += ["http://127.0.0.1:1/x.jpg", "ftp://127.0.0.1/x.jpg", "not an address", "http://", "http://[::1/x.jpg"]
    source = write_list(tmp_path / "list.tsv", [f"{server}/good/0", *addresses])
    found = download(source, tmp_path / "tars", DownloadOptions(fetch=QUICK))
    expected = Counter(cause for cause in KINDS.values() if cause)
    expected.update({"no-connection": 1, "no-http-address": 4})
    assert found["causes"] == expected
    assert (found["asked"], found["downloaded"]) == (len(addresses) + 1, 7)
    assert Handler.hits["/status/500"] == Handler.hits["/stall"] == 2  # what may pass is tried again
    assert Handler.hits["/status/404"] == Handler.hits["/noai"] == Handler.hits["/html"] == 1
    assert all(agent.startswith("softclip/") for agent in Handler.agents)
    # The tars are read with their statistics, and what only looked like an image is found by decoding.
    corpus = prepare(tmp_path / "tars", tmp_path / "c", PrepareOptions(workers=1, max_dropped=1))
    kept = {row["key"]: row for row in rows(corpus)}
    assert sorted(row["captions"][0] for row in kept.values()) == [f"caption {n}" for n in range(6)]
    assert kept["0000000003"]["image"]["bytes"] == image_bytes(3, (12, 9), "PNG")
    assert corpus.info["dropped"]["reasons"] == {"truncated-image": 1}
    assert corpus.info["sources"][0]["options"]["download"]["causes"] == expected
    table = {row["key"]: row for row in pq.read_table(tmp_path / "tars" / "00000.parquet").to_pylist()}
    assert len(table) == len(addresses) + 1
    assert table["0000000007"]["error_message"].startswith("http-404: Not Found")


def test_a_second_run_fetches_only_what_is_missing(tmp_path: Path, server: str) -> None:
    source = write_list(tmp_path / "list.tsv", [f"{server}/good/{n}" for n in range(10)])
    options = DownloadOptions(fetch=QUICK, shard_size=4)
    first = download(source, tmp_path / "tars", options)
    assert (first["shards"], first["before"], first["downloaded"]) == (3, 0, 10)
    (tmp_path / "tars" / "00001_stats.json").unlink()
    Handler.hits.clear()
    again = download(source, tmp_path / "tars", options)
    assert (again["shards"], again["before"], again["downloaded"]) == (3, 2, 10)
    assert set(Handler.hits) == {f"/good/{n}" for n in range(4, 8)}
    assert not list((tmp_path / "tars").glob("*partial"))


def test_what_failed_for_a_while_is_fetched_later(tmp_path: Path, server: str) -> None:
    kinds = ["good/0", "once/1", "status/404", "once/3", "good/4"]
    source = write_list(tmp_path / "list.tsv", [f"{server}/{kind}" for kind in kinds])
    no_retries = FetchOptions(connections=1, timeout=0.5, retries=0)
    first = download(source, tmp_path / "tars", DownloadOptions(fetch=no_retries))
    assert first["causes"] == {"http-503": 2, "http-404": 1}
    Handler.hits.clear()
    Handler.hits.update({"/once/1": 1, "/once/3": 1})
    again = download(source, tmp_path / "tars", DownloadOptions(fetch=no_retries, retry_failed=True))
    assert again["causes"] == {"http-404": 1}
    assert again["downloaded"] == 4
    assert Handler.hits == {"/once/1": 2, "/once/3": 2}
    corpus = prepare(tmp_path / "tars", tmp_path / "c", PrepareOptions(workers=1))
    assert {row["captions"][0]: row["image"]["bytes"] for row in rows(corpus)} == {
        f"caption {n}": jpeg(n) for n in (0, 1, 3, 4)
    }


def test_another_list_or_a_foreign_folder_is_refused(tmp_path: Path, server: str) -> None:
    source = write_list(tmp_path / "list.tsv", [f"{server}/good/0"])
    download(source, tmp_path / "tars", DownloadOptions(fetch=QUICK))
    with pytest.raises(UsageError, match=r"(?s)another list.*shard_size"):
        download(source, tmp_path / "tars", DownloadOptions(fetch=QUICK, shard_size=5))
    other = write_list(tmp_path / "other.tsv", [f"{server}/good/1"])
    with pytest.raises(UsageError, match=r"(?s)another list.*sha256"):
        download(other, tmp_path / "tars", DownloadOptions(fetch=QUICK))
    put(tmp_path / "mine" / "thesis.txt", "x")
    with pytest.raises(DataError, match="is not a download"):
        download(source, tmp_path / "mine", DownloadOptions(fetch=QUICK))


def test_a_dead_network_is_an_error_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softclip_cli.data.download.run.HOPELESS_AFTER", 20)
    source = write_list(tmp_path / "list.tsv", [f"http://127.0.0.1:1/{n}" for n in range(500)])
    with pytest.raises(DataError, match=r"(?s)none of \d\d addresses gave an image.*no-connection"):
        download(source, tmp_path / "tars", DownloadOptions(fetch=FetchOptions(16, 0.5, 0)))
    assert [path.name for path in (tmp_path / "tars").iterdir()] == ["download.json"]


def test_the_command(tmp_path: Path, server: str) -> None:
    source = write_list(tmp_path / "list.tsv", [f"{server}/good/{n}" for n in range(3)] + [f"{server}/status/404"])
    arguments = ["data", "download", str(source), str(tmp_path / "tars"), "--timeout", "2", "--retries", "0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "3 of 4 addresses gave an image (75.0%)" in result.stdout
    assert "http-404" in result.stdout
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert (document["before"], document["downloaded"], document["causes"]) == (1, 3, {"http-404": 1})
    for wrong, words in ((["--connections", "0"], "--connections 0"), (["--url-column", "ulr"], "Did you mean 'url'")):
        failed = CliRunner().invoke(app, [*arguments, *wrong])
        assert failed.exit_code == 2
        assert words in failed.stderr
    assert CliRunner().invoke(app, ["data", "download", "none.tsv", str(tmp_path / "x")]).exit_code == 3


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_keeps_whole_tars_and_goes_on(tmp_path: Path, server: str, stop: signal.Signals) -> None:
    source = write_list(tmp_path / "list.tsv", [f"{server}/slow/{n}" for n in range(400)])
    command = [sys.executable, "-m", "softclip_cli", "data", "download", str(source), str(tmp_path / "tars")]
    command += ["--shard-size", "20", "--connections", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    deadline = time.monotonic() + 30
    while not (tmp_path / "tars" / "00000_stats.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    names = {path.name for path in (tmp_path / "tars").iterdir()}
    assert not [name for name in names if "partial" in name]
    done = sum(name.endswith("_stats.json") for name in names)
    options = DownloadOptions(fetch=FetchOptions(32, 5.0, 0), shard_size=20, limit=done * 20 + 20)
    again = download(source, tmp_path / "tars", options)
    assert (again["before"], again["downloaded"]) == (done, done * 20 + 20)


def test_tars_are_read_over_http(server: str, tmp_path: Path) -> None:
    corpus = prepare(f"{server}/{{1..3}}.tar", tmp_path / "c", PrepareOptions(workers=1))
    assert {row["key"]: row["image"]["bytes"] for row in rows(corpus)} == {f"{n}": jpeg(n) for n in (1, 2, 3)}
    with pytest.raises(DataError, match="cannot be read"):
        prepare(f"{server}/status/404/x.tar", tmp_path / "d", PrepareOptions(workers=1))


# Lists


def test_lists_as_they_are_published(tmp_path: Path) -> None:
    cc3m = put(
        tmp_path / "Train_GCC-training.tsv", 'a "quoted" word\thttp://x/1\n"it starts with" a quote\thttp://x/2\n'
    )
    found = list(open_list(cc3m).entries())
    assert [(entry.url, entry.captions) for entry in found] == [
        ("http://x/1", ['a "quoted" word']), ("http://x/2", ['"it starts with" a quote']),
    ]  # fmt: skip
    cc12m = put(tmp_path / "cc12m.tsv", "https://x/1\ta dog\nhttps://x/2\ta\tcat\n")
    assert [(entry.url, entry.captions, entry.problem) for entry in open_list(cc12m).entries()] == [
        ("https://x/1", ["a dog"], ""), ("", [], "bad-row"),
    ]  # fmt: skip
    images = "ImageID,Subset,OriginalURL,OriginalLandingURL,Title,Thumbnail300KURL\ni1,train,https://x/o.jpg,https://x/l,A title,https://x/t\n"
    openimages = open_list(put(tmp_path / "images.csv", images))
    assert [(entry.url, entry.captions) for entry in openimages.entries()] == [("https://x/o.jpg", ["A title"])]
    pq.write_table(pa.table({"URL": ["http://x/1"], "TEXT": [["a", "b"]]}), tmp_path / "laion.parquet")
    assert next(open_list(tmp_path / "laion.parquet").entries()).captions == ["a", "b"]
    with pytest.raises(UsageError, match="no caption column"):
        open_list(put(tmp_path / "bare.csv", "url,size\nhttp://x/1,3\n"))
    with pytest.raises(UsageError, match="no column of addresses"):
        open_list(put(tmp_path / "none.csv", "caption,size\nx,3\n"))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], False), (["all"], False), (["noai"], True), (["nofollow, NoImageIndex"], True), (["otherbot: noai"], False),
        (["softclip: noindex"], True), (["otherbot: noai", "noimageai"], True),
    ],
)  # fmt: skip
def test_opting_out(headers: list[str], expected: bool) -> None:
    assert opted_out(headers) is expected


def test_a_table_of_addresses_says_what_to_run(tmp_path: Path) -> None:
    put(tmp_path / "t.csv", "image,caption\nhttp://x/1.jpg,x\n")
    with pytest.raises(DataError, match=r"(?s)image-is-a-url.*softclip data download"):
        prepare(tmp_path / "t.csv", tmp_path / "c", PrepareOptions(workers=1))
