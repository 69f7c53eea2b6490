"""`prepare`: what goes in comes out clean, what cannot is written down, and workers do not change the result."""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from prepare_samples import double_or_die, dropped, image_bytes, jpeg, pairs_folder, process_ids, put, rows

from softclip_cli.data.clean import REASONS, clean_caption
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.ordered_map import ordered_map
from softclip_cli.data.prepare import PrepareOptions, prepare
from softclip_cli.errors import DataError, HostError, UsageError

SHARED = Path(__file__).resolve().parents[2] / "shared"


def run(source: Path | str, out: Path, **options: object) -> Corpus:
    return prepare(source, out, PrepareOptions(**{"workers": 1, **options}))  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def hostile_folder(root: Path) -> Path:
    """Twelve good pairs and one of every kind of trouble."""
    pairs_folder(root, 12)
    whole = jpeg(50, (120, 90))
    png = image_bytes(51, (120, 90), "PNG")
    put(root / "bad/broken.jpg", whole[:20] + b"\0" * 400 + whole[420:])
    put(root / "bad/truncated.png", png[:2000])
    put(root / "bad/damaged.png", png[:60] + b"\xff" * 200 + png[260:])
    put(root / "bad/text.jpg", "I am text, whatever my name says")
    put(root / "bad/empty.jpg", b"")
    put(root / "bad/blank.jpg", jpeg(52))
    put(root / "bad/latin.jpg", jpeg(53))
    put(root / "bad/mixed.jpg", jpeg(54))
    put(root / "bad/badjson.jpg", jpeg(55))
    put(root / "bad/lonely.jpg", jpeg(56))
    put(root / "bad/orphan.txt", "no image")
    for name in ("broken", "truncated", "damaged", "text", "empty"):
        put(root / f"bad/{name}.txt", "a caption")
    put(root / "bad/blank.txt", " \n\t\n")
    put(root / "bad/latin.txt", "ein Mädchen".encode("latin-1"))
    put(root / "bad/mixed.txt", b"good one\nbad \xe4 one\n\n  good   two\t\n")
    put(root / "bad/badjson.json", '{"caption": ')
    return root


EXPECTED = Counter(
    {
        "damaged-image": 1, "truncated-image": 1, "not-an-image": 2, "empty-image": 1, "no-caption": 2,
        "unreadable-caption-file": 1, "no-caption-file": 1, "no-image-file": 1,
    }
)  # fmt: skip


def test_every_trouble_is_dropped_and_written_down(tmp_path: Path) -> None:
    corpus = run(hostile_folder(tmp_path / "s"), tmp_path / "c", max_dropped=0.5)
    found = rows(corpus)
    assert [row["key"] for row in found] == [*sorted(f"{n}.jpg" for n in range(12)), "bad/mixed.jpg"]
    assert found[0]["image"]["bytes"] == jpeg(0)
    assert found[-1]["captions"] == ["good one", "good two"]
    log = dropped(corpus)
    records = Counter(reason for _, _, reason in log if REASONS[reason].of == "record")
    assert records == EXPECTED
    assert ("bad/latin.jpg", "train", "no-caption") in log
    assert ("bad/mixed.jpg", "train", "caption-not-text") in log
    info = corpus.info["dropped"]
    assert info["records"] == sum(EXPECTED.values()) == sum(info["reasons"].values())
    assert info["share"] == pytest.approx(10 / 23, abs=1e-6)
    assert info["captions"] == {"caption-not-text": 1}
    assert corpus.info["counts"]["read"] == 23
    assert len(log) == info["records"] + sum(info["captions"].values())


def test_the_right_encoding_saves_the_captions(tmp_path: Path) -> None:
    corpus = run(hostile_folder(tmp_path / "s"), tmp_path / "c", max_dropped=0.5, encoding="latin-1")
    captions = {row["key"]: row["captions"] for row in rows(corpus)}
    assert captions["bad/latin.jpg"] == ["ein Mädchen"]
    assert captions["bad/mixed.jpg"] == ["good one", "bad ä one", "good two"]


def test_too_many_broken_records_are_an_error_that_names_them(tmp_path: Path) -> None:
    hostile_folder(tmp_path / "s")
    with pytest.raises(DataError) as caught:
        run(tmp_path / "s", tmp_path / "c")
    error = caught.value
    assert "more than --max-dropped allows (5.0%)" in error.what
    assert "no-caption" in error.why or "bad/" in error.why
    assert "--max-dropped" in error.hint
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    # The limit that the error proposes is enough.
    proposed = float(re.search(r"--max-dropped ([\d.]+)", error.hint)[1])  # type: ignore[index]
    run(tmp_path / "s", tmp_path / "c", max_dropped=proposed)


def test_a_hopeless_source_is_not_read_to_the_end(tmp_path: Path) -> None:
    put(tmp_path / "t.csv", "image,caption\n" + "".join(f"{n}.jpg,x\n" for n in range(5000)))
    seen: list[int] = []
    with pytest.raises(DataError, match=r"of the first \d+ records.*cannot be used"):
        prepare(tmp_path / "t.csv", tmp_path / "c", PrepareOptions(workers=1), lambda done, total: seen.append(done))
    assert max(seen) < 1000


def test_a_share_at_the_limit_is_allowed(tmp_path: Path) -> None:
    pairs_folder(tmp_path / "s", 9)
    put(tmp_path / "s" / "x.jpg", jpeg())
    assert run(tmp_path / "s", tmp_path / "c", max_dropped=0.1).info["dropped"]["records"] == 1
    with pytest.raises(DataError):
        run(tmp_path / "s", tmp_path / "d", max_dropped=0.09)


def test_missing_files_and_folders_and_pipes_in_place_of_files(tmp_path: Path) -> None:
    put(tmp_path / "ok.jpg", jpeg())
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    put(tmp_path / "t.csv", "image,caption\nok.jpg,x\nnone.jpg,y\nfolder.jpg,z\npipe.jpg,w\nok.jpg/below.jpg,v\n")
    corpus = run(tmp_path / "t.csv", tmp_path / "c", max_dropped=1)
    assert [(key, reason) for key, _, reason in dropped(corpus)] == [
        ("none.jpg", "missing-image"), ("folder.jpg", "not-an-image"), ("pipe.jpg", "not-an-image"),
        ("ok.jpg/below.jpg", "missing-image"),
    ]  # fmt: skip


@pytest.mark.parametrize("workers", [2, 3])
def test_the_corpus_does_not_depend_on_the_workers(tmp_path: Path, workers: int) -> None:
    source = hostile_folder(tmp_path / "s")
    pairs_folder(source / "more", 60)
    options = {"max_dropped": 0.5, "limit": 50, "split_fractions": {"val": 0.3}, "short_side": 12}
    one = run(source, tmp_path / "one", **options, workers=1)
    many = run(source, tmp_path / "many", **options, workers=workers)
    assert one.fingerprint == many.fingerprint
    assert tree(one.path) == tree(many.path)


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "s" / "a.jpg", "text")
    put(tmp_path / "s" / "a.txt", "x")
    with pytest.raises(DataError, match=r"(?s)no usable record.*not-an-image"):
        run(tmp_path / "s", tmp_path / "c", max_dropped=1)
    put(tmp_path / "t.csv", "image,caption\n")
    with pytest.raises(DataError, match="no usable record"):
        run(tmp_path / "t.csv", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_doubled_keys_are_made_unique_and_counted(tmp_path: Path) -> None:
    for number in range(4):
        put(tmp_path / f"{number}.jpg", jpeg(number))
    put(tmp_path / "t.csv", "image,caption,key\n0.jpg,x,a\n1.jpg,y,a\n2.jpg,z,a#2\n3.jpg,w,a\n")
    corpus = run(tmp_path / "t.csv", tmp_path / "c")
    keys = [row["key"] for row in rows(corpus)]
    assert keys == ["a", "a#2", "a#2#2", "a#3"]
    assert corpus.info["counts"]["renamed_keys"] == 3


# Splits


def test_split_fractions_are_stable_and_about_right(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", jpeg())
    for count in (1000, 2000):
        lines = "".join(f'{{"image": "{n}.jpg", "caption": "c{n}"}}\n' for n in range(count))
        put(tmp_path / f"{count}" / "t.jsonl", lines)
        for number in range(count):
            (tmp_path / f"{count}" / f"{number}.jpg").hardlink_to(tmp_path / "a.jpg")
    splits = {}
    for count in (1000, 2000):
        corpus = run(tmp_path / f"{count}", tmp_path / f"c{count}", split_fractions={"val": 0.2, "test": 0.1})
        assert corpus.splits == ["train", "val", "test"]
        splits[count] = {row["key"]: name for name in corpus.splits for row in rows(corpus, name)}
        counts = Counter(splits[count].values())
        assert counts["val"] == pytest.approx(0.2 * count, rel=0.25)
        assert counts["test"] == pytest.approx(0.1 * count, rel=0.3)
    assert splits[1000].items() <= splits[2000].items()  # a corpus that grows keeps its splits


def test_groups_are_not_torn_apart_by_fractions(tmp_path: Path) -> None:
    lines = ["image,caption,product"]
    for number in range(60):
        put(tmp_path / f"{number}.jpg", jpeg(number))
        lines.append(f"{number}.jpg,c{number},p{number % 12}")
    put(tmp_path / "t.csv", "\n".join(lines) + "\n")
    corpus = run(tmp_path / "t.csv", tmp_path / "c", group_column="product", split_fractions={"val": 0.5})
    groups = [{row["group"] for row in rows(corpus, name)} for name in ("train", "val")]
    assert len(groups[0]) + len(groups[1]) == 12
    assert not groups[0] & groups[1]


def test_fractions_of_a_source_with_splits_are_a_usage_error(tmp_path: Path) -> None:
    pairs_folder(tmp_path / "s" / "train", 2)
    with pytest.raises(UsageError, match="without splits"):
        run(tmp_path / "s", tmp_path / "c", split_fractions={"val": 0.5})


def test_split_lists_choose_rename_and_report(tmp_path: Path) -> None:
    source = pairs_folder(tmp_path / "s", 6)
    lists = {
        "train": put(tmp_path / "train.lst", "0.jpg\n1\n2.jpg\n"),
        "dev": put(tmp_path / "dev.lst", "3.jpg\r\n2.jpg\n"),
        "test": put(tmp_path / "test.lst", "4.jpg\nabsent.jpg\n"),
    }
    corpus = run(source, tmp_path / "c", split_lists=lists, max_dropped=0.2)
    assert {name: [row["key"] for row in rows(corpus, name)] for name in corpus.splits} == {
        "train": ["0.jpg", "1.jpg"], "val": ["2.jpg", "3.jpg"], "test": ["4.jpg"],
    }  # fmt: skip
    assert dropped(corpus) == [
        ("5.jpg", "", "not-in-a-split-list"), ("absent.jpg", "test", "listed-but-absent"),
        ("2.jpg", "train", "in-several-splits"),
    ]  # fmt: skip
    assert corpus.info["dropped"]["records"] == 1
    with pytest.raises(DataError, match="cannot be read"):
        run(source, tmp_path / "d", split_lists={"train": tmp_path / "none"})


def test_limit_is_per_split(tmp_path: Path) -> None:
    for split, count in (("train", 30), ("test", 5)):
        pairs_folder(tmp_path / "s" / split, count)
    corpus = run(tmp_path / "s", tmp_path / "c", limit=7)
    assert {name: split["rows"] for name, split in corpus.info["splits"].items()} == {"train": 7, "test": 5}
    assert (
        run(pairs_folder(tmp_path / "p", 30), tmp_path / "d", limit=3, split="test").info["splits"]["test"]["rows"] == 3
    )


def test_a_column_of_many_values_is_no_split_column(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", jpeg())
    put(tmp_path / "t.csv", "image,caption,id\n" + "".join(f"a.jpg,x,v{n}\n" for n in range(100)))
    with pytest.raises(DataError, match="more than 64 splits"):
        run(tmp_path / "t.csv", tmp_path / "c", split_column="id")


# Labels and captions


def test_labelled_sets_have_labels_and_no_captions_unless_asked(tmp_path: Path) -> None:
    for name in ("fire_truck/1.jpg", "cat/1.jpg"):
        put(tmp_path / "s" / name, jpeg())
    corpus = run(tmp_path / "s", tmp_path / "c")
    assert [(row["label"], row["captions"]) for row in rows(corpus)] == [(0, []), (1, [])]
    assert corpus.info["class_names"] == corpus.split("train").features["label"].names == ["cat", "fire_truck"]
    templates = ("a photo of a {}", "the {}.")
    corpus = run(tmp_path / "s", tmp_path / "d", caption_templates=templates)
    assert rows(corpus)[1]["captions"] == ["a photo of a fire truck", "the fire truck."]
    with pytest.raises(UsageError, match="needs class names"):
        run(pairs_folder(tmp_path / "p"), tmp_path / "e", caption_templates=templates)


def test_templates_fill_in_where_a_labelled_record_has_no_caption(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"{number}.jpg", jpeg(number))
    put(tmp_path / "t.csv", "image,caption,label\n0.jpg,mine,cat\n1.jpg,,dog\n2.jpg,,\n")
    options = {"label_column": "label", "max_dropped": 0.5}
    corpus = run(tmp_path / "t.csv", tmp_path / "c", **options, caption_templates=("a {}",))
    assert [row["captions"] for row in rows(corpus)] == [["mine"], ["a dog"]]
    assert [reason for _, _, reason in dropped(corpus)] == ["empty-caption", "empty-caption", "no-caption"]
    corpus = run(tmp_path / "t.csv", tmp_path / "d", label_column="label", max_dropped=0.7)
    assert [row["captions"] for row in rows(corpus)] == [["mine"]]


def test_captions_are_normalised() -> None:
    assert clean_caption("  a\tb \r\n c\x00d\u00a0e\ufefff\u200bg\x7f ") == ("a b c d e f g", "")
    assert clean_caption("\u200b \ufeff")[0] == ""
    assert clean_caption("half \ud800 of it") == (None, "half a character (U+D800) at position 5 is not valid utf-8")
    assert clean_caption(b"caf\xe9".decode("utf-8", "surrogateescape"))[1].startswith("byte 0xE9 at position 3")


@given(st.text())
def test_clean_captions_are_clean(text: str) -> None:
    cleaned, problem = clean_caption(text)
    assert (problem == "") == bool(cleaned)
    if cleaned:
        assert cleaned == " ".join(cleaned.split())
        assert not [char for char in cleaned if unicodedata.category(char) == "Cc"]
        assert clean_caption(cleaned) == (cleaned, "")


# Images


def test_bytes_are_kept_unless_a_short_side_is_asked_for(tmp_path: Path) -> None:
    source = tmp_path / "s"
    originals = {"big.png": image_bytes(1, (90, 60), "PNG"), "small.gif": image_bytes(2, (30, 20), "GIF")}
    for name, data in originals.items():
        put(source / name, data)
        put(source / (name.split(".")[0] + ".txt"), "x")
    assert {row["key"]: row["image"]["bytes"] for row in rows(run(source, tmp_path / "c"))} == originals
    corpus = run(source, tmp_path / "d", short_side=20, quality=80)
    resized = {row["key"]: row["image"]["bytes"] for row in rows(corpus)}
    assert resized["small.gif"] == originals["small.gif"]
    image = Image.open(io.BytesIO(resized["big.png"]))
    assert (image.format, image.size, image.mode) == ("JPEG", (30, 20), "RGB")
    assert corpus.info["counts"]["resized"] == 1
    assert corpus.info["options"] == {"short_side": 20, "quality": 80}


def test_resizing_shows_the_same_picture_upright(tmp_path: Path) -> None:
    # A large JPEG that a camera stored on its side: left half dark, right half bright once it is upright.
    upright = np.zeros((400, 600, 3), np.uint8)
    upright[:, 300:] = 230
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stream = io.BytesIO()
    Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90).save(stream, "JPEG", exif=exif)
    put(tmp_path / "s" / "a.jpg", stream.getvalue())
    put(tmp_path / "s" / "a.txt", "x")
    data = rows(run(tmp_path / "s", tmp_path / "c", short_side=100))[0]["image"]["bytes"]
    image = Image.open(io.BytesIO(data))
    assert image.size == (150, 100)
    assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    pixels = np.asarray(image).astype(int)
    assert pixels[:, :70].mean() < 10
    assert pixels[:, 80:].mean() > 220


# The output folder


def test_a_prepared_corpus_can_be_prepared_again(tmp_path: Path) -> None:
    first = run(hostile_folder(tmp_path / "s"), tmp_path / "c", max_dropped=0.5, split="test")
    again = run(first.path, tmp_path / "d")
    assert again.info["sources"][0]["format"] == "datasets"
    assert rows(again, "test") == rows(first, "test")


def test_the_output_is_protected(tmp_path: Path) -> None:
    source = pairs_folder(tmp_path / "c" / "raw")
    with pytest.raises(UsageError, match="lies in the output folder"):
        run(source, tmp_path / "c", overwrite=True)
    with pytest.raises(UsageError, match="lies in the output folder"):
        run(source, source, overwrite=True)
    run(source, tmp_path / "out")
    with pytest.raises(DataError, match="--overwrite"):
        run(source, tmp_path / "out")
    run(source, tmp_path / "out", overwrite=True, limit=2)
    assert Corpus.open(tmp_path / "out").info["counts"]["records"] == 2


def test_a_full_disk_is_a_host_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from softclip_cli.data.corpus import SplitWriter

    def full(self: SplitWriter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SplitWriter, "flush", full)
    with pytest.raises(HostError, match="no space left"):
        run(pairs_folder(tmp_path / "s"), tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_unusable_options_are_named_all_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        PrepareOptions(
            quality=0, limit=0, max_dropped=2, caption_templates=("no braces",), split_fractions={"val": 1.5}
        )
    for option in ("--quality", "--limit", "--max-dropped", "--caption-template", "--split-fraction"):
        assert option in caught.value.why


def test_corpus_json_tells_where_it_came_from(tmp_path: Path) -> None:
    source = pairs_folder(tmp_path / "s")
    info = run(source, tmp_path / "c").info
    assert info["sources"] == [
        {
            "path": str(source.resolve()), "format": "pairs",
            "reason": "a folder of pairs: 0.jpg has 0.txt beside it", "options": {},
        }
    ]  # fmt: skip
    assert info["splits"] == {"train": {"rows": 6, "captions": 6}}
    assert info["counts"] == {"read": 6, "records": 6, "captions": 6, "resized": 0, "renamed_keys": 0}


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    prepare(pairs_folder(tmp_path / "s"), tmp_path / "c", PrepareOptions(workers=1), lambda *call: calls.append(call))
    assert calls[-1] == (6, 6)


# Workers


def test_ordered_map_survives_a_crash_and_loses_one_item() -> None:
    chunks = [[n, n + 1] for n in range(0, 24, 2)]
    found = list(ordered_map(double_or_die, iter(chunks), 2, lambda item: -item))
    assert found == [(n, -13 if n == 13 else 2 * n) for n in range(24)]


def test_ordered_map_reads_only_a_little_ahead() -> None:
    taken = []

    def chunks():  # type: ignore[no-untyped-def]
        for number in range(100):
            taken.append(number)
            yield [number]

    results = ordered_map(process_ids, chunks(), 2, lambda item: 0)
    places = [next(results)[1] for _ in range(10)]
    assert len(taken) <= 10 + 4
    assert os.getpid() not in places
    results.close()  # type: ignore[attr-defined]


# Real data, where it is at hand


@pytest.mark.skipif(not (SHARED / "data" / "flickr8k").is_dir(), reason="Flickr8k is not on this machine")
def test_flickr8k_prepares_without_options(tmp_path: Path) -> None:
    corpus = prepare(SHARED / "data" / "flickr8k", tmp_path / "c", PrepareOptions(limit=20))
    assert {name: (split["rows"], split["captions"]) for name, split in corpus.info["splits"].items()} == {
        "train": (20, 100), "val": (20, 100), "test": (20, 100),
    }  # fmt: skip


@pytest.mark.skipif(not (SHARED / "data" / "cifar10").is_dir(), reason="CIFAR-10 is not on this machine")
def test_cifar10_prepares_without_options(tmp_path: Path) -> None:
    corpus = prepare(SHARED / "data" / "cifar10", tmp_path / "c", PrepareOptions(limit=50, workers=1))
    assert {name: split["rows"] for name, split in corpus.info["splits"].items()} == {"train": 50, "test": 50}
    assert len(corpus.info["class_names"]) == 10


@pytest.mark.skipif(not (SHARED / "data" / "pacs").is_dir(), reason="PACS is not on this machine")
def test_pacs_prepares_without_options(tmp_path: Path) -> None:
    corpus = prepare(SHARED / "data" / "pacs", tmp_path / "c", PrepareOptions(limit=20, workers=1))
    assert corpus.splits == ["art_painting", "cartoon", "photo", "sketch"]
    assert corpus.info["class_names"] == ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
