"""Signatures, hashes, the index and what becomes of duplicates: against brute force, SciPy and written-down cases."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageDraw
from scenes import CHANGES, changed, encoded, scene
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from softclip_cli.data import near_index
from softclip_cli.data.decisions import Decisions, decide, is_evaluation
from softclip_cli.data.decode import open_image
from softclip_cli.data.duplicates import Pairs, clusters, duplicates_between, duplicates_within, first_copies
from softclip_cli.data.near_index import HashIndex
from softclip_cli.data.perceptual import WINDOWS, Hasher, cutting, details, packed
from softclip_cli.data.signature import SIGNATURE_BYTES, Signatures, sign, signature


def digest(data: bytes) -> bytes:
    return sign(data)[:16]


# Signatures


def test_the_digest_is_of_the_upright_pixels_whatever_the_file() -> None:
    image = scene(1)
    png = encoded(image, "PNG")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees clockwise
    turned = encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    assert (
        digest(png) == digest(encoded(image, "BMP")) == digest(turned) == digest(encoded(image, "WEBP", lossless=True))
    )
    assert digest(png) != digest(encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG"))
    jpeg = encoded(image, quality=80)
    assert digest(jpeg) == digest(encoded(open_image(jpeg), "PNG"))


def test_one_pixel_or_another_shape_changes_the_digest() -> None:
    image = scene(2)
    other = image.copy()
    other.putpixel((5, 5), (1, 2, 3))
    assert signature(image)[:16] != signature(other)[:16]
    flat = Image.new("RGB", (8, 4), "red")
    assert signature(flat)[:16] != signature(Image.new("RGB", (4, 8), "red"))[:16]


def test_arrays_images_and_images_in_several_blocks_give_one_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    image = scene(3)
    expected = signature(image)
    assert len(expected) == SIGNATURE_BYTES
    assert signature(np.asarray(image)) == expected
    # Without the loan of Pillow's memory, as with an older Pillow.
    monkeypatch.setattr("pyarrow.array", lambda *_: 1 / 0)
    assert signature(image) == expected


def test_what_cannot_be_decoded_is_like_nothing() -> None:
    broken = sign(b"no image")
    assert broken == bytes(SIGNATURE_BYTES)
    assert len(duplicates_between(Signatures.of([signature(scene(0))]), Signatures.of([broken]))) == 0


def test_rows_come_in_the_order_asked_for_from_any_piece() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (50, SIGNATURE_BYTES), dtype=np.uint8)
    pieces = Signatures([rows[:7], rows[7:7], rows[7:31], rows[31:]])
    numbers = np.array([49, 0, 7, 30, 31, 6])
    assert np.array_equal(pieces.rows(numbers), rows[numbers])
    picked = np.array([0, 6, 7, 8, 49])
    assert np.array_equal(pieces.only(picked).rows(np.arange(5)), rows[picked])
    assert pieces.digests().tobytes() == rows[:, :16].tobytes()


# Hashes


def test_coefficients_are_the_dct_of_the_window() -> None:
    luma = np.random.default_rng(0).integers(0, 256, (5, 24, 24), dtype=np.uint8)
    found = Hasher(WINDOWS).coefficients(luma)
    for place, window in enumerate(WINDOWS):
        rows, columns = cutting(24, window.top, window.size), cutting(24, window.left, window.size)
        for number in range(5):
            part = rows.astype(float) @ luma[number].astype(float) @ columns.T.astype(float)
            expected = dctn(part, norm="ortho")[:8, :8].ravel()[1:]
            np.testing.assert_allclose(found[number, place], expected, rtol=1e-3, atol=1e-2)


def test_details_are_what_a_gaussian_blur_takes_away() -> None:
    luma = np.random.default_rng(1).integers(0, 256, (3, 24, 24), dtype=np.uint8)
    for number in range(3):
        sharp = luma[number] - gaussian_filter(luma[number].astype(float), 3.0, mode="reflect", truncate=8)
        # Parseval: correlations may be taken of the transform.
        np.testing.assert_allclose(details(luma)[number], dctn(sharp, norm="ortho"), atol=0.3)


def test_cutting_a_whole_line_changes_nothing() -> None:
    assert np.allclose(cutting(24, 0.0, 1.0), np.eye(24))


# The index


def brute_force(rows: np.ndarray, queries: np.ndarray, most: int) -> set[tuple[int, int]]:
    """All pairs whose hash differs in at most `most` bits under some window."""
    signs = rows > 0
    return {
        (query, row)
        for query in range(len(queries))
        for row in range(len(rows))
        if min(int((window != signs[row]).sum()) for window in queries[query] > 0) <= most
    }


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), flipped=st.integers(0, 2))
def test_the_index_finds_every_pair_within_two_bits_and_none_too_far(seed: int, flipped: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(200, 63)).astype(np.float32)
    queries = np.repeat(rows[:40, None], 2, axis=1) + 0
    queries[:, 0] = rng.normal(size=(40, 63))  # the first window is of no use
    for query in queries[:, 1]:
        query[rng.choice(63, flipped, replace=False)] *= -1
    found = HashIndex(packed(rows > 0)).candidates(queries)
    pairs = set(zip(found.query.tolist(), found.row.tolist(), strict=True))
    assert {(number, number) for number in range(40)} <= pairs
    assert brute_force(rows, queries, 2) <= pairs <= brute_force(rows, queries, near_index.MOST_DIFFERENT)
    assert len(pairs) == len(found.query)


def test_uncertain_bits_are_turned_over() -> None:
    rng = np.random.default_rng(0)
    rows = rng.choice([-1.0, 1.0], (50, 63)).astype(np.float32)
    query = rows[:10].copy()
    for places in near_index.BIT_OF_KEY:  # three bits of each key change sign, and say that they are uncertain
        query[:, places[[2, 9, 17]]] *= -0.01
    found = HashIndex(packed(rows > 0)).candidates(query[:, None])
    assert {(number, number) for number in range(10)} <= set(zip(found.query.tolist(), found.row.tolist(), strict=True))


def test_memory_is_bounded_without_a_change_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    rows = np.sign(rng.normal(size=(300, 63)) + 2 * np.sign(rng.normal(size=63))).astype(np.float32)
    whole = HashIndex(packed(rows > 0)).candidates(rows[:, None])
    monkeypatch.setattr(near_index, "AT_ONCE", 50)
    parts = HashIndex(packed(rows > 0)).candidates(rows[:, None])
    assert np.array_equal(whole.query, parts.query)
    assert np.array_equal(whole.row, parts.row)


# Duplicates


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    images = [scene(number) for number in range(60)]
    planted = [changed(images[number], CHANGES[number % 4]) for number in range(0, 60, 3)]
    signatures = Signatures.of([signature(image.convert("RGB")) for image in [*images, *planted]])
    pairs = duplicates_within(signatures)
    assert list(zip(pairs.one.tolist(), pairs.other.tolist(), strict=True)) == [
        (number, 60 + place) for place, number in enumerate(range(0, 60, 3))
    ]
    assert not pairs.exact.any()
    assert (pairs.alike > 0.8).all()


def test_between_two_sets_either_may_be_the_crop() -> None:
    images = [scene(number) for number in range(8)]
    mine = Signatures.of([signature(images[0]), signature(changed(images[1], "cropped")), signature(images[2])])
    theirs = Signatures.of([signature(changed(images[0], "cropped")), signature(images[1]), signature(images[3])])
    pairs = duplicates_between(mine, theirs)
    assert (pairs.one.tolist(), pairs.other.tolist()) == ([0, 1], [0, 1])


def test_copies_of_the_same_pixels_hang_on_their_first() -> None:
    same = signature(scene(1))
    pairs = duplicates_within(
        Signatures.of([same, signature(scene(2)), same, signature(changed(scene(1), "small")), same])
    )
    found = list(zip(pairs.one.tolist(), pairs.other.tolist(), pairs.exact.tolist(), strict=True))
    assert found == [(0, 2, True), (0, 3, False), (0, 4, True)]


def test_blank_pages_of_other_colours_and_other_colours_of_one_shape_are_no_duplicates() -> None:
    blank = [Image.new("RGB", (64, 64), colour) for colour in ("white", "black", "#eee")]
    shapes = []
    for colour in ("#d02020", "#2050d0"):
        image = Image.new("RGB", (64, 64), "#808080")
        image.paste(colour, (10, 8, 40, 30))
        image.paste(colour, (30, 40, 60, 50))
        shapes.append(image)
    assert len(duplicates_within(Signatures.of([signature(image) for image in [*blank, *shapes]]))) == 0


def test_a_few_strokes_on_an_empty_ground_must_be_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    drawings = []
    for body in ((44, 60, 76, 100), (42, 66, 80, 98)):  # two guitars
        image = Image.new("RGB", (120, 120), "white")
        pen = ImageDraw.Draw(image)
        pen.line((60, 14, 60, 90), fill="black", width=6)
        pen.ellipse(body, outline="black", width=3)
        drawings.append(image)
    small = drawings[0].resize((90, 90), Image.Resampling.BICUBIC)
    signatures = Signatures.of([signature(image) for image in [*drawings, small]])
    pairs = duplicates_within(signatures)
    assert list(zip(pairs.one.tolist(), pairs.other.tolist(), strict=True)) == [(0, 2)]
    monkeypatch.setattr("softclip_cli.data.duplicates.FEW_STROKES", 0.0)
    assert len(duplicates_within(signatures)) == 3  # without the rule both guitars are the same


def test_nothing_and_one_image_have_no_duplicates() -> None:
    assert len(duplicates_within(Signatures([]))) == 0
    assert len(duplicates_within(Signatures.of([signature(scene(0))]))) == 0
    assert len(duplicates_between(Signatures([]), Signatures.of([signature(scene(0))]))) == 0


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=30))
def test_first_copies_are_the_first_of_equal_digests(values: list[int]) -> None:
    digests = np.array([[7, value] for value in values], np.uint64).reshape(-1, 2)
    assert first_copies(digests).tolist() == [values.index(value) for value in values]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_clusters_are_connected_components(edges: list[tuple[int, int]]) -> None:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    table = np.array(edges, np.int64).reshape(-1, 2)
    found = clusters(10, make_pairs(edges))
    _, labels = connected_components(coo_array((np.ones(len(table)), table.T), shape=(10, 10)), directed=False)
    assert found.tolist() == [labels.tolist().index(label) for label in labels]


# Decisions


def make_pairs(edges: list[tuple[int, int]], exact: frozenset[tuple[int, int]] = frozenset()) -> Pairs:
    table = np.array(edges, np.int64).reshape(-1, 2)
    flags = np.array([edge in exact for edge in edges], bool)
    return Pairs(table[:, 0], table[:, 1], np.where(flags, 1.0, 0.9).astype(np.float32), flags)


def outcome(found: Decisions) -> tuple[dict[int, int], dict[int, int]]:
    return (
        {number: match.number for number, match in found.duplicates.items()},
        {number: match.number for number, match in found.leaks.items()},
    )


def test_the_first_stays_and_what_resembles_only_what_went_stays_too() -> None:
    found = decide(make_pairs([(0, 1), (1, 2)]), np.zeros(3, int), [False])
    assert outcome(found) == ({1: 0}, {})
    assert found.groups == {0: 0, 1: 0, 2: 0}  # a group follows the chain


def test_evaluation_splits_lose_nothing_and_training_images_in_them_are_leaks() -> None:
    split_of = np.array([0, 0, 1, 1, 1])
    found = decide(make_pairs([(0, 1), (0, 2), (2, 3), (3, 4)]), split_of, [True, False])
    # 3 resembles only the leak 2, which goes; 4 resembles 3, which stays.
    assert outcome(found) == ({4: 3}, {2: 0})
    assert {number: match.number for number, match in found.evaluation.items()} == {1: 0}
    assert set(found.groups) == {2, 3, 4}


def test_copies_share_what_their_first_resembles() -> None:
    # 1 is of the same pixels as 0, and 0 is near 2: so 1 is near 2.
    pairs = make_pairs([(0, 1), (0, 2)], exact=frozenset({(0, 1)}))
    found = decide(pairs, np.array([0, 1, 1]), [True, False])
    assert outcome(found) == ({}, {1: 0, 2: 0})
    # Two copies of an image of another split are copies of each other.
    pairs = make_pairs([(0, 1), (0, 2)], exact=frozenset({(0, 1), (0, 2)}))
    found = decide(pairs, np.array([0, 1, 1]), [False, False])
    assert outcome(found) == ({2: 1}, {})
    assert set(found.apart) == {1}


def test_images_that_are_gone_already_count_for_nothing() -> None:
    found = decide(make_pairs([(0, 1), (1, 2)]), np.zeros(3, int), [False], gone={0})
    assert outcome(found) == ({2: 1}, {})
    assert found.groups == {1: 0, 2: 0}


@settings(max_examples=60, deadline=None)
@given(
    edges=st.sets(
        st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda edge: edge[0] < edge[1]), max_size=16
    ),
    split_of=st.lists(st.integers(1, 2), min_size=8, max_size=8),
)
def test_what_stays_of_a_split_has_no_duplicates_in_it(edges: set[tuple[int, int]], split_of: list[int]) -> None:
    splits = np.array([0, 0, 0, 0, *sorted(split_of)])
    ordered = sorted(edges)
    found = decide(make_pairs(ordered), splits, [True, False, False])
    gone = found.duplicates.keys() | found.leaks.keys()
    assert all(splits[number] > 0 for number in gone)
    for one, other in ordered:
        if splits[other] > 0 and (splits[one] == 0 or splits[one] == splits[other]):
            assert one in gone or other in gone
    for number, match in found.duplicates.items():
        assert match.number not in gone
        assert splits[match.number] == splits[number]


def test_splits_for_evaluation_go_by_their_names() -> None:
    assert all(map(is_evaluation, ("val", "test", "test_night", "val.1", "test2", "TEST")))
    assert not any(map(is_evaluation, ("train", "validity", "testament", "photo", "contest")))


def test_signature_of_a_grey_file_is_that_of_its_rgb_pixels() -> None:
    grey = scene(4).convert("L")
    stream = io.BytesIO()
    grey.save(stream, "PNG")
    assert sign(stream.getvalue()) == signature(grey.convert("RGB"))
