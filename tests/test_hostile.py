"""A corpus that somebody made to do harm: right counts, no crash, nothing outside the output folder, no network."""

from __future__ import annotations

import functools
import io
import json
import socket
import struct
import tarfile
import zlib
from pathlib import Path
from typing import NoReturn

import pytest
from PIL import Image
from prepare_samples import dropped, image_bytes, jpeg, put, rows
from tar_samples import member, put_tar, special
from typer.testing import CliRunner

from softclip_cli.commands.data import app
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.decode import open_image


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def squeezed_zeros(count: int) -> bytes:
    packer = zlib.compressobj(9)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(count >> 20)) + packer.flush()


@functools.cache
def pixel_bomb() -> bytes:
    """20,000 × 20,000 grey pixels, all black and all there: under 400 kB that become 400 MB."""
    return png(20_000, 20_000, png_chunk(b"IDAT", squeezed_zeros(20_000 * 20_001)))


@functools.cache
def text_bomb() -> bytes:
    """A small picture with a comment of 64 MB."""
    comment = png_chunk(b"zTXt", b"Comment\0\0" + squeezed_zeros(64 << 20))
    return png(16, 16, comment, png_chunk(b"IDAT", zlib.compress(bytes(17 * 16))))


def header_of(width: int, height: int) -> bytes:
    """A JPEG whose header says that it is larger than it is."""
    data = bytearray(jpeg(3, (64, 48)))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def animated_gif() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("L", (20, 20), shade) for shade in (0, 128, 255)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


TRUNCATED = jpeg(4, (200, 150))[:4000]
IMAGES = {  # name: content, and the reason for which it is left out
    "bomb.png": (pixel_bomb, "decompression-bomb"),
    "comment.png": (text_bomb, "damaged-image"),
    "header.jpg": (lambda: header_of(50_000, 50_000), "decompression-bomb"),
    "truncated.jpg": (lambda: TRUNCATED, "truncated-image"),
    "moving.gif": (animated_gif, ""),
    "text.jpg": (lambda: b"<html>no picture here</html>", "not-an-image"),
    "script.jpg": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n(rm) run\n", "not-an-image"),
    "empty.jpg": (lambda: b"", "empty-image"),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def refuse(*arguments: object, **named: object) -> NoReturn:
        raise AssertionError("the network was asked for")

    def local_only(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX:  # worker processes are talked to by these
            refuse()
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", local_only)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


def prepare(tmp_path: Path, source: Path | str, workers: int = 1) -> Corpus:
    """Run the command; whatever lies outside its output folder must be as it was."""
    before = snapshot(tmp_path)
    arguments = [
        "prepare",
        str(source),
        str(tmp_path / "out" / "corpus"),
        "-j",
        str(workers),
        "--max-dropped",
        "1",
        "--json",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Traceback" not in result.output
    after = {name: state for name, state in snapshot(tmp_path).items() if not name.startswith("out/corpus/")}
    assert after == before
    corpus = Corpus.open(tmp_path / "out" / "corpus")
    document = json.loads(result.stdout)
    assert document["dropped"]["records"] == sum(document["dropped"]["reasons"].values())
    for name in corpus.splits:
        for row in rows(corpus, name):
            open_image(row["image"]["bytes"])
            "".join(row["captions"]).encode("utf-8")
    return corpus


def test_a_hostile_tar(tmp_path: Path) -> None:
    secret = put(tmp_path / "secret.txt", "the password")
    members = [member("good/0.jpg", jpeg(0)), member("good/0.txt", "fine")]
    members += [member("../../escape.jpg", jpeg(1)), member("../../escape.txt", "up")]
    members += [member(f"{tmp_path}/absolute.jpg", jpeg(2)), member(f"{tmp_path}/absolute.txt", "absolute")]
    members += [special("link.jpg", tarfile.SYMTYPE, str(secret)), member("link.txt", "linked")]
    members += [member("hard.jpg", jpeg(3)), special("hard.txt", tarfile.LNKTYPE, str(secret))]
    members += [
        special("folder", tarfile.SYMTYPE, str(tmp_path)),
        member("folder/planted.jpg", jpeg(4)),
        member("folder/planted.txt", "x"),
    ]
    members += [special("device.jpg", tarfile.BLKTYPE), special("pipe.txt", tarfile.FIFOTYPE)]
    for name, (make, _) in IMAGES.items():
        members += [member(name, make()), member(name.split(".")[0] + ".txt", f"about {name}")]
    members += [member("nul.jpg", jpeg(5)), member("nul.txt", "a\0caption\0")]
    members += [member("half.jpg", jpeg(6)), member("half.json", '{"caption": "half \\ud83d of it"}')]
    members += [member("bytes.jpg", jpeg(7)), member("bytes.txt", b"\xff\xfe\xfa\xfb"[2:] + b"caption")]
    members += [member("long.jpg", jpeg(8)), member("long.txt", "x" * (5 << 20))]
    members += [member("deep.jpg", jpeg(9)), member("deep.json", "[" * 100_000)]
    for number, caption in ((10, "first"), (11, "second")):
        members += [member("same.jpg", jpeg(number)), member("same.txt", caption)]
    corpus = prepare(tmp_path, put_tar(tmp_path / "in" / "x.tar", members))
    found = {row["key"]: row["captions"] for row in rows(corpus)}
    assert found == {
        "good/0": ["fine"], "folder/planted": ["x"], "moving": ["about moving.gif"], "nul": ["a caption"],
        "same": ["first"], "same#2": ["second"],
    }  # fmt: skip
    assert corpus.info["dropped"]["reasons"] == {
        "refused-member": 7, "decompression-bomb": 2, "damaged-image": 1, "truncated-image": 1, "not-an-image": 2,
        "empty-image": 1, "no-caption": 2, "unreadable-caption-file": 2,
    }  # fmt: skip
    assert corpus.info["noted"] == {"animated": {"images": 1, "such_as": ["moving"]}}
    assert b"the password" not in b"".join(path.read_bytes() for path in corpus.path.rglob("*") if path.is_file())
    reasons = {key: reason for key, _, reason in dropped(corpus)}
    assert {name: reasons.get(name.split(".")[0], "") for name in IMAGES} == {
        name: why for name, (_, why) in IMAGES.items()
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hostile_table(tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "in"
    lines = []
    for number in range(40):
        if number % 5:  # every fifth file is missing
            put(folder / f"{number}.jpg", jpeg(number))
        lines.append({"image": f"{number}.jpg", "caption": f"caption {number}", "key": f"k{number % 30}"})
    for name, (make, _) in IMAGES.items():
        put(folder / name, make())
        lines.append({"image": name, "caption": f"about {name}", "key": name})
    lines += [
        {"image": "1.jpg\0.png", "caption": "a NUL in a path", "key": "nul"},
        {"image": "/dev/zero", "caption": "an endless file", "key": "zero"},
        {"image": "http://127.0.0.1:1/x.jpg", "caption": "an address", "key": "web"},
        {"image": "\ud83d.jpg", "caption": "half a name", "key": "\ud83d"},
        {"image": "2.jpg", "caption": "\ud800", "key": "half"},
        {"image": "x" * 5000, "caption": "a long name", "key": "name"},
    ]
    put(folder / "t.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + '{"image": \n\xff\n')
    corpus = prepare(tmp_path, folder / "t.jsonl", workers)
    assert corpus.info["counts"]["records"] == 32 + 1
    # 2.jpg is named twice: its second caption joins the first record and is left out there.
    assert corpus.info["dropped"]["captions"] == {"caption-not-text": 1}
    assert corpus.info["dropped"]["reasons"] == {
        "missing-image": 8, "decompression-bomb": 2, "damaged-image": 1, "truncated-image": 1, "not-an-image": 3,
        "empty-image": 1, "image-is-a-url": 1, "unreadable-image": 3, "bad-row": 2,
    }  # fmt: skip
    assert corpus.info["counts"]["renamed_keys"] == 8


def test_a_hostile_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name, (make, _) in IMAGES.items():
        put(folder / name, make())
        put(folder / (name.split(".")[0] + ".txt"), "a caption")
    put(folder / "good.jpg", jpeg())
    put(folder / "good.txt", "fine")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere")
    for name in ("zero", "gone"):
        put(folder / f"{name}.txt", "x")
    corpus = prepare(tmp_path, folder)
    assert {row["key"] for row in rows(corpus)} == {"good.jpg", "moving.gif"}
    assert corpus.info["dropped"]["records"] == len(IMAGES) - 1 + 2


def test_the_picture_of_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    from softclip_cli.data.clean import Rules, clean
    from softclip_cli.data.sources.base import Candidate, Dropped

    def load(self: Image.Image) -> NoReturn:
        raise AssertionError("it was decoded")

    data = pixel_bomb()
    assert len(data) < 500_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    for short_side in (None, 256):
        result = clean(Candidate("bomb", data, ["x"]), Rules(short_side=short_side))
        assert isinstance(result, Dropped)
        assert result.reason == "decompression-bomb"


def test_the_samples_are_what_they_claim() -> None:
    assert Image.open(io.BytesIO(image_bytes(1, (8, 8), "PNG"))).size == (8, 8)
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(TRUNCATED)).load()
