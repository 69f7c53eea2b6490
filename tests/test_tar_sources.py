"""WebDataset tars and files at addresses: read in a stream, whole or damaged, with everything that is refused counted."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepare_samples import dropped, image_bytes, jpeg, pairs_folder, put, rows
from tar_samples import member, put_tar, special, tar_bytes

from softclip_cli.data.prepare import PrepareOptions, prepare
from softclip_cli.data.sources import open_source
from softclip_cli.data.sources.base import Candidate, Dropped, Source, SourceOptions
from softclip_cli.data.sources.places import braces, expand, natural, shown
from softclip_cli.data.sources.tar_samples import TarSample, read_samples
from softclip_cli.data.sources.tar_stream import TarDamage, read_tar
from softclip_cli.errors import DataError, HostError, UsageError


def items(source: Source) -> list[Candidate | Dropped]:
    return [item for part in source.parts for item in part.records()]


def read(path: Path | str, **options: object) -> list[Candidate | Dropped]:
    return items(open_source(str(path), SourceOptions(**options)))  # type: ignore[arg-type]


def pair(key: str, number: int, caption: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [member(f"{key}.jpg", jpeg(number)), member(f"{key}.txt", caption)]


# The reader of tars, beside the standard library's

name = st.text(st.characters(codec="utf-8", exclude_characters="\0\\"), min_size=1, max_size=200).filter(
    lambda text: not text.startswith("/") and ".." not in text.split("/") and not text.endswith("/")
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(name, st.binary(max_size=1500)), max_size=6),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_tars_are_read_as_the_standard_library_reads_them(content: list[tuple[str, bytes]], format: int) -> None:
    data = tar_bytes([member(name, inside) for name, inside in content], format)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    found = list(read_tar(io.BytesIO(data), lambda name: 1 << 20))
    assert [(one.name.rstrip("/"), one.data) for one in found] == expected
    assert not any(one.problem for one in found)


@pytest.mark.parametrize("seekable", [True, False])
def test_a_tar_cut_anywhere_gives_what_is_before_the_cut(seekable: bool) -> None:
    whole = tar_bytes([member(f"{n}.jpg", bytes([n]) * (700 + n)) for n in range(4)])
    ends = [1536 * (number + 1) for number in range(4)]  # a header and two blocks each
    for cut in range(0, ends[-1] + 1, 128):
        stream = io.BytesIO(whole[:cut])
        if not seekable:
            stream.seekable = lambda: False  # type: ignore[method-assign]
        found = []
        with pytest.raises(TarDamage, match="it ends after"):
            for one in read_tar(stream, lambda name: 1 << 20):
                found.append(one.name)
        assert found == [f"{number}.jpg" for number in range(sum(end <= cut for end in ends))]


def test_a_large_member_that_is_sought_over_and_cut_is_noticed() -> None:
    data = tar_bytes([member("a.bin", bytes(3 << 20)), member("b.txt", "x")])
    assert [one.data for one in read_tar(io.BytesIO(data), lambda name: 100)] == [None, b"x"]
    with pytest.raises(TarDamage):
        list(read_tar(io.BytesIO(data[: 2 << 20]), lambda name: 100))


def test_a_damaged_header_and_a_header_that_claims_gigabytes_end_the_tar() -> None:
    good = tar_bytes([member("a.txt", "x"), member("b.txt", "y")])
    damaged = good[:1024] + b"\xff" * 512 + good[1536:]
    with pytest.raises(TarDamage, match="the header at byte 1,024 is damaged"):
        list(read_tar(io.BytesIO(damaged), lambda name: 100))
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 8 << 30
    with pytest.raises(TarDamage, match="claims 8,589,934,592 bytes"):
        list(read_tar(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT)), lambda name: 100))


# WebDataset


def test_samples_of_text_json_and_many_dots(tmp_path: Path) -> None:
    put_tar(
        tmp_path / "0.tar",
        [
            *pair("./deep/a", 1, "one caption\nof two lines"),
            member("b.png", image_bytes(2, (8, 8), "PNG")), member("b.json", '{"caption": "from json", "url": "u"}'),
            member("c.jpg", jpeg(3)), member("c.txt", "first"), member("c.json", '{"captions": ["first", "second"]}'),
            member("d.left.jpg", jpeg(4)), member("d.right.jpg", jpeg(5)), member("d.right.txt", "own"), member("d.txt", "shared"),
            member("e.v2.JPG", jpeg(6)), member("e.v2.txt", "dots"),
            member("README", "about"), member("._a.jpg", "macos"), special("f", tarfile.DIRTYPE),
        ],
    )  # fmt: skip
    source = open_source(str(tmp_path), SourceOptions())
    assert source.format == "webdataset"
    assert source.reason == "WebDataset: 1 tar; 0.tar has ./deep/a.jpg and ./deep/a.txt"
    assert [(item.key, item.captions) for item in items(source)] == [  # type: ignore[union-attr]
        ("deep/a", ["one caption\nof two lines"]), ("b", ["from json"]), ("c", ["first", "second"]),
        ("d.left", ["shared"]), ("d.right", ["own"]), ("e", ["dots"]),
    ]  # fmt: skip
    assert [item.captions for item in read(tmp_path, caption_columns=("url",)) if isinstance(item, Candidate)] == [
        ["u"]
    ]


def test_what_a_sample_lacks_is_said(tmp_path: Path) -> None:
    members = [
        *pair("a", 1, "x"), member("b.jpg", jpeg(2)), member("c.txt", "alone"), member("d.jpg", jpeg(3)),
        member("d.json", '{"broken'), member("e.jpg", jpeg(4)), member("e.json", '{"width": 3}'),
        member("f.jpg", jpeg(5)), member("f.txt", b"caf\xe9"),
    ]  # fmt: skip
    found = read(put_tar(tmp_path / "x.tar", members))
    assert {item.key: item.reason for item in found if isinstance(item, Dropped)} == {
        "b": "no-caption-file", "c": "no-image-file", "d": "unreadable-caption-file", "e": "no-caption-file",
    }  # fmt: skip
    assert [item.captions for item in found if isinstance(item, Candidate)] == [["x"], ["caf\udce9"]]
    latin = read(tmp_path / "x.tar", encoding="latin-1")
    assert latin[-1].captions == ["café"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("evil", "why"),
    [
        (member("../evil.jpg", b"x"), "leads out"),
        (member("a/../../evil.jpg", b"x"), "leads out"),
        (member("..\\evil.jpg", b"x"), "leads out"),
        (member("/tmp/evil.jpg", b"x"), "absolute"),
        (member("C:/evil.jpg", b"x"), "absolute"),
        (special("evil.jpg", tarfile.SYMTYPE, "/etc/passwd"), "a link to '/etc/passwd'"),
        (special("evil.jpg", tarfile.LNKTYPE, "a.jpg"), "a link"),
        (special("evil", tarfile.CHRTYPE), "a device"),
        (special("evil", tarfile.FIFOTYPE), "a device or pipe"),
    ],
)
def test_members_that_are_no_plain_files_inside_are_refused_and_counted(
    tmp_path: Path, evil: tuple[tarfile.TarInfo, bytes], why: str
) -> None:
    found = read(put_tar(tmp_path / "x.tar", [*pair("a", 1, "x"), evil, *pair("b", 2, "y")]))
    assert [item.key for item in found if isinstance(item, Candidate)] == ["a", "b"]
    refused = [item for item in found if isinstance(item, Dropped)]
    assert [item.reason for item in refused] == ["refused-member"]
    assert why in refused[0].detail


def test_repeated_keys_are_samples_of_their_own(tmp_path: Path) -> None:
    put_tar(tmp_path / "0.tar", [*pair("a", 1, "x"), *pair("a", 2, "y")])
    put_tar(tmp_path / "1.tar", pair("a", 3, "z"))
    corpus = prepare(tmp_path, tmp_path / "out" / "c", PrepareOptions(workers=1))
    assert [(row["key"], row["captions"]) for row in rows(corpus)] == [("a", ["x"]), ("a#2", ["y"]), ("a#3", ["z"])]
    assert corpus.info["counts"]["renamed_keys"] == 2


def test_a_key_that_never_ends_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softclip_cli.data.sources.tar_samples.MAX_SAMPLE_MEMBERS", 10)
    path = put_tar(tmp_path / "x.tar", [member(f"a.{n}.jpg", jpeg(n)) for n in range(25)] + [member("a.txt", "x")])
    sizes = [len(sample.images) for sample in read_samples(str(path)) if isinstance(sample, TarSample)]
    assert sizes == [10, 10, 5]


def test_a_tar_that_ends_early_costs_its_end_only(tmp_path: Path) -> None:
    whole = tar_bytes([one for n in range(6) for one in pair(f"{n}", n, f"caption {n}")])
    put(tmp_path / "s" / "00000.tar", whole)
    put(tmp_path / "s" / "00001.tar", whole[: len(whole) // 2])
    put(tmp_path / "s" / "00002.tar", b"")
    put(tmp_path / "s" / "00003.tar.gz", gzip.compress(whole)[:-2000])
    put(tmp_path / "s" / "00004.tgz", gzip.compress(whole))
    put(tmp_path / "s" / "00005.tar", b"<html>not found</html>" * 100)
    corpus = prepare(tmp_path / "s", tmp_path / "c", PrepareOptions(workers=1, max_dropped=1))
    reasons = Counter(reason for _, _, reason in dropped(corpus))
    assert reasons["damaged-tar"] == 4
    captions = Counter(row["captions"][0] for row in rows(corpus))
    assert captions["caption 0"] >= 3
    assert captions["caption 5"] == 2


def test_classes_have_labels_and_names(tmp_path: Path) -> None:
    members = [
        one
        for n in range(3)
        for one in (member(f"{n}.webp", image_bytes(n, (8, 8), "WEBP")), member(f"{n}.cls", f"{n % 2}\n"))
    ]
    put_tar(tmp_path / "wds" / "test" / "0.tar", members)
    source = open_source(str(tmp_path / "wds"), SourceOptions())
    assert (source.class_names, source.has_captions, source.parts[0].split) == (["0", "1"], False, "test")
    assert [item.label for item in items(source)] == [0, 1, 0]  # type: ignore[union-attr]
    put(tmp_path / "wds" / "classnames.txt", "cat\ndog\n")
    for place in ("wds", "wds/test"):
        assert open_source(str(tmp_path / place), SourceOptions()).class_names == ["cat", "dog"]
    found = read(tmp_path / "wds", class_names=("only",))
    assert [item.reason for item in found if isinstance(item, Dropped)] == ["unknown-label"]


def test_splits_come_from_folders_or_names(tmp_path: Path) -> None:
    for place in ("cc3m-train-0000.tar", "cc3m-validation-0000.tar"):
        put_tar(tmp_path / "a" / place, pair("x", 1, "x"))
    assert [part.split for part in open_source(str(tmp_path / "a"), SourceOptions()).parts] == ["train", "val"]
    put_tar(tmp_path / "a" / "extra-0000.tar", pair("x", 1, "x"))
    assert [part.split for part in open_source(str(tmp_path / "a"), SourceOptions()).parts] == [None] * 3


def stats(count: int, successes: int, **causes: int) -> str:
    failed = count - successes
    return json.dumps(
        {"count": count, "successes": successes, "failed_to_download": failed, "failed_to_resize": 0, "duration": 1.5,
         "status_dict": {"success": successes, **causes}}
    )  # fmt: skip


def test_img2dataset_output_is_read_as_it_is_with_its_statistics(tmp_path: Path) -> None:
    for shard, (count, good) in enumerate([(10, 3), (10, 2)]):
        keys = [f"{shard:05d}{n:04d}" for n in range(good)]
        members = [
            one for n, key in enumerate(keys)
            for one in (*pair(key, n, f"c{key}"), member(f"{key}.json", json.dumps({"caption": f"c{key}", "status": "success"})))
        ]  # fmt: skip
        put_tar(tmp_path / "s" / f"{shard:05d}.tar", members)
        put(
            tmp_path / "s" / f"{shard:05d}_stats.json",
            stats(count, good, **{"HTTP Error 404: Not Found": count - good}),
        )
        pq.write_table(pa.table({"url": ["u"], "caption": ["c"]}), tmp_path / "s" / f"{shard:05d}.parquet")
    put_tar(tmp_path / "s" / "00002.tar", pair("000020000", 9, "late"))
    source = open_source(str(tmp_path / "s"), SourceOptions())
    assert [part.total for part in source.parts] == [3, 2, None]
    assert "download: 5 of 20 addresses gave an image (25.0%)" in source.notes
    assert "download failed: 15 HTTP Error 404: Not Found" in source.notes
    assert any("00002.tar" in note and "without statistics" in note for note in source.notes)
    corpus = prepare(tmp_path / "s", tmp_path / "c", PrepareOptions(workers=1))
    assert [row["captions"] for row in rows(corpus)][:2] == [["c000000000"], ["c000000001"]]
    assert corpus.info["sources"][0]["options"]["download"] == {
        "shards": 2, "shards_without_statistics": 1, "asked": 20, "downloaded": 5, "failed_to_download": 15,
        "failed_to_resize": 0, "causes": {"HTTP Error 404: Not Found": 15},
    }  # fmt: skip


def test_tars_beside_other_data_do_not_hide_it(tmp_path: Path) -> None:
    pairs_folder(tmp_path / "pairs", 2)
    put_tar(tmp_path / "pairs" / "backup.tar", pair("x", 1, "x"))
    assert open_source(str(tmp_path / "pairs"), SourceOptions()).format == "pairs"
    put(tmp_path / "table" / "t.csv", "image,caption\na.jpg,x\n")
    put_tar(tmp_path / "table" / "images.tar", [member("a.jpg", jpeg()), member("b.jpg", jpeg())])
    assert open_source(str(tmp_path / "table"), SourceOptions()).format == "table"
    with pytest.raises(DataError, match=r"(?s)no sample has an image with a caption.*--sort=name"):
        open_source(str(tmp_path / "table" / "images.tar"), SourceOptions())


# Patterns and addresses


def test_braces_expand_as_in_a_shell() -> None:
    assert braces("x/{08..11}.tar") == ["x/08.tar", "x/09.tar", "x/10.tar", "x/11.tar"]
    assert braces("{a,b}-{1..2}") == ["a-1", "a-2", "b-1", "b-2"]
    assert braces("no{thing}") == ["no{thing}"]
    with pytest.raises(UsageError, match="at most"):
        braces("{0..9999999}")
    assert sorted(["10.tar", "2.tar", "a.tar"], key=natural) == ["2.tar", "10.tar", "a.tar"]


def test_patterns_name_tars(tmp_path: Path) -> None:
    for number in range(12):
        put_tar(tmp_path / f"{number:05d}.tar", pair(f"{number}", number, "x"))
    for pattern, keys in (("{00003..00005}.tar", ["3", "4", "5"]), ("0000[12].tar", ["1", "2"]), ("*9.tar", ["9"])):
        assert [item.key for item in read(tmp_path / pattern)] == keys
    with pytest.raises(DataError, match=r"(?s)2 of the 4 tars do not exist.*00012.tar"):
        read(tmp_path / "{00010..00013}.tar")
    with pytest.raises(DataError, match="no tars and no Parquet"):
        read(tmp_path / "*.nothing")


@pytest.fixture
def memory() -> fsspec.AbstractFileSystem:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


def test_tars_at_an_address_are_those_of_a_folder(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    for number in range(3):
        data = tar_bytes(pair(f"{number}", number, f"c{number}"))
        put(tmp_path / f"{number}.tar", data)
        memory.pipe(f"/bucket/{number}.tar", data)
        memory.pipe(f"/bucket/{number}_stats.json", stats(2, 1).encode())
    expected = [(item.key, item.image, item.captions) for item in read(tmp_path)]  # type: ignore[union-attr]
    for address in (
        "memory://bucket",
        "memory://bucket/*.tar",
        "memory://bucket/{0..2}.tar",
        (tmp_path / "{0..2}.tar").as_uri(),
    ):
        address = address.replace("%7B", "{").replace("%7D", "}")
        assert [(item.key, item.image, item.captions) for item in read(address)] == expected  # type: ignore[union-attr]
    assert any("3 of 6 addresses" in note for note in open_source("memory://bucket", SourceOptions()).notes)
    corpus = prepare("memory://bucket", tmp_path / "c", PrepareOptions(workers=1))
    assert corpus.info["sources"][0]["path"] == "memory://bucket"


def test_parquet_at_an_address(memory: fsspec.AbstractFileSystem) -> None:
    for split in ("train", "test"):
        stream = io.BytesIO()
        pq.write_table(pa.table({"image": [jpeg(1)], "caption": [split]}), stream)
        memory.pipe(f"/set/data/{split}-00000-of-00001.parquet", stream.getvalue())
    found = read("memory://set/data")
    assert [(item.split, item.captions) for item in found] == [("test", ["test"]), ("train", ["train"])]  # type: ignore[union-attr]
    assert len(read("memory://set/data/train-*.parquet")) == 1


def test_addresses_that_cannot_be_opened_say_why(memory: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read("memory://none/0.tar")
    with pytest.raises(DataError, match="no tars and no Parquet"):
        read("memory://none")
    with pytest.raises(UsageError, match="no address that can be opened"):
        read("nonsense://x/0.tar")
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(HostError, match="package that is not installed"):
            read("gs://x/0.tar")


def test_passwords_and_signatures_are_not_stored() -> None:
    assert shown("https://me:secret@host/x.tar?X-Signature=abc") == "https://host/x.tar"
    assert shown("s3://bucket/x.tar") == "s3://bucket/x.tar"
    assert expand("https://host/{0..1}.tar?sig=1", (".tar",)) == [
        "https://host/0.tar?sig=1",
        "https://host/1.tar?sig=1",
    ]
