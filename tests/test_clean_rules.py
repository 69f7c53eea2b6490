"""The rules that choose: each leaves out what it says, can be turned off, and counts."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from prepare_samples import dropped, image_bytes, jpeg, put, rows
from typer.testing import CliRunner

from softclip_cli.app import app
from softclip_cli.data.caption_rules import CaptionCounter, Range
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.prepare import PrepareOptions, prepare
from softclip_cli.errors import DataError, HostError, UsageError


def folder(root: Path, images: dict[str, bytes], caption: str = "a caption") -> Path:
    for name, data in images.items():
        put(root / name, data)
        put(root / (name.rsplit(".", 1)[0] + ".txt"), caption)
    return root


def run(source: Path, out: Path, **options: object) -> Corpus:
    return prepare(source, out, PrepareOptions(**{"workers": 1, **options}))  # type: ignore[arg-type]


def kept(corpus: Corpus) -> set[str]:
    return {row["key"] for row in rows(corpus)}


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(np.full((16, 16, 3), shade, np.uint8)) for shade in (10, 120, 240)]
    stream = io.BytesIO()
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:], duration=50)
    return stream.getvalue()


# Images


def test_small_and_stretched_images_are_left_out_and_the_rules_can_be_turned_off(tmp_path: Path) -> None:
    sizes = {"pixel": (1, 1), "small": (7, 200), "edge": (8, 8), "long": (170, 8), "wide": (160, 8)}
    source = folder(tmp_path / "s", {f"{name}.png": image_bytes(1, size, "PNG") for name, size in sizes.items()})
    corpus = run(source, tmp_path / "a")
    assert kept(corpus) == {"edge.png", "wide.png"}
    assert Counter(reason for _, _, reason in dropped(corpus)) == {"image-too-small": 2, "extreme-aspect": 1}
    assert corpus.info["dropped"]["left_out"] == {"image-too-small": 2, "extreme-aspect": 1}
    assert corpus.info["dropped"]["records"] == 0  # a choice is no damage: it never fails the run
    assert len(kept(run(source, tmp_path / "b", min_side=0, max_aspect=0))) == 5
    assert kept(run(source, tmp_path / "c", max_aspect=3.0)) == {"edge.png"}
    with pytest.raises(DataError, match=r"(?s)no usable record.*image-too-small"):
        run(source, tmp_path / "d", min_side=1000)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animated_images_keep_their_first_frame_or_are_dropped(tmp_path: Path, kind: str) -> None:
    suffix = kind.lower()
    images = {f"moves.{suffix}": animation(kind), f"still.{suffix}": image_bytes(1, (16, 16), kind)}
    source = folder(tmp_path / "s", images)
    corpus = run(source, tmp_path / "a")
    assert corpus.info["noted"] == {"animated": {"images": 1, "such_as": [f"moves.{suffix}"]}}
    assert {row["key"]: row["image"]["bytes"] for row in rows(corpus)} == images
    assert kept(run(source, tmp_path / "b", animated="drop")) == {f"still.{suffix}"}
    small = rows(run(source, tmp_path / "c", short_side=8))[0]["image"]["bytes"]
    assert np.asarray(Image.open(io.BytesIO(small))).mean() < 20  # the first frame is the dark one


def test_a_wrong_suffix_and_a_turned_photo_are_kept_and_noted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stream = io.BytesIO()
    Image.new("RGB", (20, 10)).save(stream, "JPEG", exif=exif)
    images = {"png.jpg": image_bytes(1, (9, 9), "PNG"), "turned.jpeg": stream.getvalue(), "good.jpg": jpeg(2)}
    corpus = run(folder(tmp_path / "s", images), tmp_path / "c")
    assert len(kept(corpus)) == 3
    assert corpus.info["noted"] == {
        "wrong-extension": {"images": 1, "such_as": ["png.jpg"]}, "rotated": {"images": 1, "such_as": ["turned.jpeg"]},
    }  # fmt: skip


def test_pages_and_stereo_views_are_not_animations(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), shade) for shade in ("red", "blue")]
    images = {}
    for kind, name in (("TIFF", "pages.tif"), ("MPO", "stereo.jpg")):
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
        images[name] = stream.getvalue()
    assert run(folder(tmp_path / "s", images), tmp_path / "c", animated="drop").info["noted"] == {}


# Captions


def test_lengths_in_characters_and_words(tmp_path: Path) -> None:
    put(tmp_path / "s" / "a.jpg", jpeg(1))
    put(tmp_path / "s" / "a.txt", "cat\ntwo words\nthree little words\n" + "long " * 40 + "\n" + "狗在草地上奔跑" * 3)
    put(tmp_path / "s" / "b.jpg", jpeg(2))
    put(tmp_path / "s" / "b.txt", "dog")
    corpus = run(tmp_path / "s", tmp_path / "c", caption_words=Range(2, 20))
    assert [row["captions"] for row in rows(corpus)] == [["two words", "three little words"]]
    info = corpus.info["dropped"]
    assert info["captions"] == {"caption-too-short": 2, "caption-too-long": 1}
    assert info["left_out"] == {"captions-ruled-out": 1}
    assert info["records"] == 0
    corpus = run(tmp_path / "s", tmp_path / "d", caption_characters=Range(4, 30))
    assert rows(corpus)[0]["captions"] == ["two words", "three little words", "狗在草地上奔跑" * 3]
    long = put(tmp_path / "t" / "a.txt", "x" * 10_001)
    put(tmp_path / "t" / "a.jpg", jpeg(1))
    with pytest.raises(DataError, match="captions-ruled-out"):
        run(long.parent, tmp_path / "e")
    assert len(rows(run(long.parent, tmp_path / "f", caption_characters=Range()))) == 1


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_ranges_are_read_as_they_are_written(low: int, more: int) -> None:
    for written in (Range(low, low + more), Range(low), Range(0, more)):
        assert Range.parse(str(written)) == written


@pytest.mark.parametrize("text", ["", "3", "a:b", "5:3", "-1:2", "1:2:3", "1.5:2"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"MIN:MAX|smaller"):
        Range.parse(text)


def test_repeated_captions_are_counted_and_capped_as_a_counter_would(tmp_path: Path) -> None:
    choose = random.Random(0)
    texts = [[f"text {choose.randrange(40)}" for _ in range(choose.randrange(1, 4))] for _ in range(600)]
    for number, captions in enumerate(texts):
        put(tmp_path / "s" / f"{number:03d}.png", image_bytes(number, (8, 8), "PNG"))
        put(tmp_path / "s" / f"{number:03d}.txt", "\n".join(captions))
    images: Counter[str] = Counter(text for captions in texts for text in set(captions))
    report = run(tmp_path / "s", tmp_path / "a").info["repeats"]
    often = {text: count for text, count in images.items() if count > 10}
    assert (report["texts"], report["captions"]) == (len(often), sum(often.values()))
    expected = sorted(often.items(), key=lambda item: (-item[1], item[0]))[:10]
    assert [(item["caption"], item["images"]) for item in report["most_frequent"]] == expected
    # With a limit each text stands on the first so many images that have it.
    corpus = run(tmp_path / "s", tmp_path / "b", max_repeats=5)
    met: Counter[str] = Counter()
    survivors = []
    for captions in texts:
        fits = [text for text in captions if met[text] < 5]
        met.update(set(fits))
        survivors += [fits] if fits else []
    assert [row["captions"] for row in rows(corpus)] == survivors
    info = corpus.info["dropped"]
    assert info["left_out"] == {"captions-repeated": len(texts) - len(survivors)}
    assert info["captions"]["repeated-caption"] == sum(map(len, texts)) - sum(map(len, survivors))


def test_the_counter_stays_small_and_keeps_the_frequent() -> None:
    counter = CaptionCounter(max_repeated=100)
    for number in range(3000):
        counter.keep([f"twice {number // 2}", "everywhere" if number % 3 else "often"])
    assert len(counter.counts) <= 100
    assert [item["caption"] for item in counter.report()["most_frequent"]] == ["everywhere", "often"]
    assert [item["images"] for item in counter.report()["most_frequent"]] == [2000, 1000]


def test_captions_in_another_language_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("py3langid", reason="the extra `language` is not installed")
    captions = {
        "en": ["a brown dog runs across the grass", "a dog"],
        "de": ["ein brauner Hund läuft über die Wiese"],
        "fr": ["un chien brun court dans l'herbe"],
        "zh": ["一只棕色的狗在草地上奔跑"],
    }
    put(tmp_path / "s" / "a.jpg", jpeg(1))
    put(tmp_path / "s" / "a.txt", "\n".join(text for texts in captions.values() for text in texts))
    corpus = run(tmp_path / "s", tmp_path / "a", languages=("en",))
    assert rows(corpus)[0]["captions"] == captions["en"]  # what is too short to tell stays
    assert corpus.info["dropped"]["captions"] == {"caption-in-another-language": 3}
    assert (
        rows(run(tmp_path / "s", tmp_path / "b", languages=("en", "de")))[0]["captions"]
        == captions["en"] + captions["de"]
    )
    with pytest.raises(UsageError, match="unknown language 'klingon'"):
        run(tmp_path / "s", tmp_path / "c", languages=("klingon",))


def test_a_missing_language_package_is_a_host_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from softclip_cli.data import caption_rules

    caption_rules._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(HostError, match=r"(?s)softclip\[language\]"):
        run(folder(tmp_path / "s", {"a.jpg": jpeg()}), tmp_path / "c", languages=("en",))


# The command


def test_every_rule_has_its_option_and_wrong_values_are_usage_errors(tmp_path: Path) -> None:
    images = {
        "good.png": image_bytes(1, (40, 30), "PNG"), "small.png": image_bytes(2, (15, 30), "PNG"),
        "long.png": image_bytes(3, (90, 20), "PNG"), "moves.gif": animation("GIF"), "twin.png": image_bytes(4, (40, 30), "PNG"),
    }  # fmt: skip
    source = folder(tmp_path / "s", images, "one two three\nsame old words\nshort\n" + "long " * 50)
    arguments = ["data", "prepare", str(source), str(tmp_path / "c"), "-j", "1"]
    rules = ["--min-side", "16", "--max-aspect", "4", "--caption-words", "2:", "--caption-characters", ":100"]
    rules += ["--max-repeats", "1"]
    result = CliRunner().invoke(app, [*arguments, *rules])
    assert result.exit_code == 0, result.output
    assert [row["captions"] for row in rows(Corpus.open(tmp_path / "c"))] == [["one two three", "same old words"]]
    for words in ("1 image-too-small", "1 extreme-aspect", "2 captions-repeated", "3 caption-too-long"):
        assert words in result.stdout, result.stdout
    dropping = CliRunner().invoke(app, [*arguments, "--overwrite", "--animated", "drop"])
    assert "1 animated-image" in dropping.stdout
    for option, value in (
        ("--min-side", "-1"), ("--max-aspect", "0.5"), ("--animated", "maybe"), ("--caption-words", "many"),
        ("--caption-characters", "9:3"), ("--max-repeats", "0"),
    ):  # fmt: skip
        failed = CliRunner().invoke(app, [*arguments, "--overwrite", option, value])
        assert (failed.exit_code, option in failed.stderr) == (2, True), failed.output
