"""Near-duplicates planted among real photos: how many are found, how many wrong ones, at what cost, and how it grows.

    python benchmarks/duplicates.py [--quick] [--json FILE] [--photos DIR] [--sheet FILE]

200 of Flickr8k's 8,091 photos get a copy each, of eight kinds in turn, drawn with a fixed seed. Recall: the share of the copies
that are paired with their originals. Precision: the share of right ones among all pairs that are found, where a pair between
two of the photos themselves counts as wrong unless it is in `KNOWN`: the photos of the set that show the same picture, as seen by
eye (`--sheet` draws all pairs that were found between photos). Beside it the 64-bit pHash of the `imagehash` package, compared
with all others, where that package is installed.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from softclip_cli.data.decode import open_image
from softclip_cli.data.duplicates import Pairs, duplicates_within
from softclip_cli.data.near_index import HashIndex
from softclip_cli.data.perceptual import WINDOWS, Hasher, cutting, packed
from softclip_cli.data.signature import DIGEST_BYTES, LUMA, LUMA_BYTES, SIGNATURE_BYTES, Signatures, signature

PHOTOS = Path(__file__).resolve().parents[2] / "shared/data/flickr8k/images"
PLANTED, SEED = 200, 0
BICUBIC = Image.Resampling.BICUBIC
# Pairs of Flickr8k that show the same photo, by eye. Two shots of one scene are not counted as that.
KNOWN = {
    ("2851198725_37b6027625.jpg", "3050606344_af711c726c.jpg"): "the same pixels",
    ("1525153022_06c48dbe52.jpg", "2637959357_dd64a03efa.jpg"): "the same photo, cropped and toned anew",
    ("309687244_4bdf3b591f.jpg", "374828031_9d087da5cf.jpg"): "the same photo, toned anew",
}
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def saved(image: Image.Image, quality: int) -> Image.Image:
    """The image after a JPEG of that quality."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return open_image(stream.getvalue())


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """The image at another size."""
    return image.resize((round(image.width * factor), round(image.height * factor)), BICUBIC)


def cropped(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """The image without `share` of its width and of its height, cut off anywhere."""
    width, height = round(image.width * (1 - share)), round(image.height * (1 - share))
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def brighter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image 10 to 30 % brighter."""
    return ImageEnhance.Brightness(image).enhance(float(rng.uniform(1.1, 1.3)))


CHANGES: dict[str, Change] = {
    "JPEG quality 50": lambda image, rng: saved(image, 50),
    "JPEG quality 25": lambda image, rng: saved(image, 25),
    "resized to 70 %": lambda image, rng: saved(scaled(image, 0.7), 90),
    "resized to 50 %": lambda image, rng: saved(scaled(image, 0.5), 90),
    "cropped 5 % a side length": lambda image, rng: saved(cropped(image, 0.05, rng), 90),
    "cropped 10 % a side length": lambda image, rng: saved(cropped(image, 0.10, rng), 90),
    "10 to 30 % brighter": lambda image, rng: saved(brighter(image, rng), 90),
    "all: 5 % crop, 70 %, brighter, quality 50": lambda image, rng: saved(
        scaled(brighter(cropped(image, 0.05, rng), rng), 0.7), 50
    ),
}


def study(photos: list[Path], planted: int, sheet: Path | None) -> dict[str, Any]:
    """Plant, find and count."""
    rng = np.random.default_rng(SEED)
    originals = np.sort(rng.choice(len(photos), planted, replace=False))
    kinds = [list(CHANGES)[number % len(CHANGES)] for number in range(planted)]
    images = [open_image(path.read_bytes()) for path in photos]
    copies = [CHANGES[kind](images[place], rng) for kind, place in zip(kinds, originals, strict=True)]
    signatures = Signatures.of([signature(image) for image in [*images, *copies]])
    began = time.perf_counter()
    pairs = duplicates_within(signatures)
    seconds = time.perf_counter() - began
    names = [path.name for path in photos]
    result = {"softclip": score(pairs, names, originals, kinds), "seconds": seconds, "images": len(signatures)}
    own = pairs.where(pairs.other < len(photos))
    result["pairs_between_photos"] = [
        {
            "one": names[one],
            "other": names[other],
            "alike": round(float(alike), 3),
            "seen": KNOWN.get((names[one], names[other]), "not the same photo"),
        }
        for one, other, alike in zip(own.one, own.other, own.alike, strict=True)
    ]
    if sheet and len(own):
        draw_sheet(own, images, names, sheet)
    stock = imagehash_pairs([*images, *copies])
    if stock is None:
        print("the package imagehash is not installed: its rows are left out", file=sys.stderr)
    for most, found in (stock or {}).items():
        result[f"imagehash pHash, all pairs, distance <= {most}"] = score(found, names, originals, kinds)
    return result


def score(pairs: Pairs, names: list[str], originals: np.ndarray, kinds: list[str]) -> dict[str, Any]:
    """Recall, by kind and in all, and precision."""
    right = set(zip(originals.tolist(), range(len(names), len(names) + len(originals)), strict=True))
    found = list(zip(pairs.one.tolist(), pairs.other.tolist(), strict=True))
    # A copy of a photo that is itself one of two alike is alike to both.
    same = {
        frozenset((names.index(one), names.index(other))) for one, other in KNOWN if one in names and other in names
    }
    source = {len(names) + number: place for number, place in enumerate(originals.tolist())}

    def is_right(one: int, other: int) -> bool:
        one, other = source.get(one, one), source.get(other, other)
        return one == other or frozenset((one, other)) in same

    hit = right & set(found)
    wrong = sum(not is_right(*pair) for pair in found)
    by_kind = {}
    for kind in dict.fromkeys(kinds):
        members = [
            pair for pair, its in zip(sorted(right, key=lambda pair: pair[1]), kinds, strict=True) if its == kind
        ]
        by_kind[kind] = {"planted": len(members), "found": len(hit & set(members))}
    return {
        "recall": len(hit) / len(right),
        "precision": (len(found) - wrong) / max(1, len(found)),
        "precision_all_photo_pairs_wrong": len(hit) / max(1, len(found)),
        "found": len(found),
        "wrong": wrong,
        "kinds": by_kind,
    }


def imagehash_pairs(images: list[Image.Image]) -> dict[int, Pairs] | None:
    """All pairs within some distances of the stock 64-bit pHash."""
    try:
        import imagehash
    except ImportError:
        return None
    hashes = np.array([np.packbits(imagehash.phash(image).hash).view(np.uint64)[0] for image in images])
    found: dict[int, list[tuple[int, int]]] = {4: [], 8: [], 12: []}
    for one in range(len(hashes)):
        distance = np.bitwise_count(hashes[one + 1 :] ^ hashes[one])
        for most, its in found.items():
            its += [(one, one + 1 + int(other)) for other in np.flatnonzero(distance <= most)]
    return {
        most: Pairs(
            *np.array(its or np.empty((0, 2)), np.int64).reshape(-1, 2).T, np.ones(len(its)), np.zeros(len(its), bool)
        )
        for most, its in found.items()
    }


def draw_sheet(pairs: Pairs, images: list[Image.Image], names: list[str], out: Path) -> None:
    """The pairs between photos, side by side."""
    side = 176
    sheet = Image.new("RGB", (2 * side, len(pairs) * (side + 14)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (one, other, alike) in enumerate(zip(pairs.one, pairs.other, pairs.alike, strict=True)):
        top = row * (side + 14)
        pen.text((2, top), f"{alike:.3f} {names[one][:20]} {names[other][:20]}", fill="black")
        for place, number in enumerate((one, other)):
            sheet.paste(images[number].resize((side, side)), (place * side, top + 14))
    sheet.save(out)


def cost(photos: list[Path], count: int, rounds: int) -> dict[str, float]:
    """Milliseconds an image at 512 × 384: the signature beside the decoding that is done anyhow, taking turns."""
    files = []
    for path in photos[:count]:
        stream = io.BytesIO()
        open_image(path.read_bytes()).resize((512, 384), BICUBIC).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    times: dict[str, list[float]] = {"decode": [], "signature": []}
    for _ in range(rounds):
        began = time.perf_counter()
        images = [open_image(data) for data in files]
        middle = time.perf_counter()
        for image in images:
            signature(image)
        times["decode"].append((middle - began) / count * 1e3)
        times["signature"].append((time.perf_counter() - middle) / count * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def mixtures(signatures: Signatures, count: int, seed: int) -> Signatures:
    """Made-up signatures that look like photos: each the mean of random parts of two photos, one of them mirrored."""
    rng = np.random.default_rng(seed)
    made = np.empty((count, SIGNATURE_BYTES), np.uint8)
    for start in range(0, count, 1000):
        rows = made[start : start + 1000]
        size = len(rows)
        rows[:, :DIGEST_BYTES] = rng.integers(0, 256, (size, DIGEST_BYTES))
        parts = []
        for _ in range(2):
            views = signatures.views(rng.integers(0, len(signatures), size))
            places = rng.uniform(0, 0.5, (2, 2))
            down, across = (cutting(LUMA, place, rng.uniform(0.5, 1 - place)) for place in places[:, 0])
            parts.append((down @ views.luma.astype(np.float32) @ across.T, views.chroma))
        luma = (parts[0][0] + parts[1][0][:, :, ::-1]) / 2
        rows[:, DIGEST_BYTES : DIGEST_BYTES + LUMA_BYTES] = luma.round().astype(np.uint8).reshape(size, -1)
        rows[:, DIGEST_BYTES + LUMA_BYTES :] = parts[0][1].reshape(size, -1)
    return Signatures([made])


def growth(photos: list[Path], sizes: list[int]) -> list[dict[str, Any]]:
    """Time and memory of finding all near-duplicates among made-up images."""
    signatures = Signatures.of([signature(open_image(path.read_bytes())) for path in photos])
    rows = []
    for size in sizes:
        made = mixtures(signatures, size, SEED)
        began, used = time.perf_counter(), time.process_time()
        pairs = duplicates_within(made)
        seconds, used = time.perf_counter() - began, time.process_time() - used
        part = made.views(np.arange(min(size, 1000)))
        index = HashIndex(packed(Hasher([WINDOWS[0]]).coefficients(part.luma)[:, 0] > 0))
        fixed = sum(array.nbytes for array in index.starts)
        rows.append(
            {
                "images": size,
                "seconds": seconds,
                "cpu_seconds": used,
                "cpu_microseconds_an_image": used / size * 1e6,
                "index_mib": (fixed + (index.nbytes - fixed) / len(part.luma) * size) / 2**20,
                "signatures_mib": size * SIGNATURE_BYTES / 2**20,
                "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
                "pairs": len(pairs),
            }
        )
        print(f"{size:,} made-up images: {seconds:.1f} s, {used:.1f} s of a core", file=sys.stderr)
    return rows


def print_table(result: dict[str, Any]) -> None:
    """One table: a line for each kind of change, then the sums, then speed and growth."""
    methods = [name for name, value in result["study"].items() if isinstance(value, dict)]
    print(f"{'':44}" + "".join(f"{name.removeprefix('imagehash ')[:34]:>36}" for name in methods))
    first = result["study"]["softclip"]["kinds"]
    for kind in first:
        cells = [result["study"][name]["kinds"][kind] for name in methods]
        print(f"{kind:44}" + "".join(f"{cell['found']:>29} of {cell['planted']:>3}" for cell in cells))
    for what in ("recall", "precision", "wrong"):
        values = [result["study"][name][what] for name in methods]
        print(
            f"{what:44}"
            + "".join(f"{value:>36.3f}" if isinstance(value, float) else f"{value:>36}" for value in values)
        )
    for pair in result["study"]["pairs_between_photos"]:
        print(f"between photos: {pair['alike']:.3f} {pair['one']} {pair['other']}: {pair['seen']}")
    print(f"{result['study']['images']:,} images compared in {result['study']['seconds']:.2f} s")
    spent = result["milliseconds"]
    print(
        f"signature {spent['signature']:.2f} ms an image of 512×384, decoding {spent['decode']:.2f} ms "
        f"(ratio {result['ratios']['signature_of_decode']:.2f})"
    )
    for row in result["growth"]:
        print(
            f"{row['images']:>10,} made-up images: {row['seconds']:8.1f} s ({row['cpu_microseconds_an_image']:.0f} µs of a core an image), "
            f"index {row['index_mib']:.0f} MiB, signatures {row['signatures_mib']:.0f} MiB, peak RSS {row['peak_rss_mib']:.0f} MiB"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer photos, small sizes: does it run at all")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="a folder of JPEGs")
    parser.add_argument("--sheet", type=Path, help="draw the pairs found between photos here")
    options = parser.parse_args()
    photos = sorted(options.photos.glob("*.jpg")) if options.photos.is_dir() else []
    if not photos:
        parser.error(
            f"no photos in {options.photos}: this benchmark needs Flickr8k's images; name them with --photos DIR"
        )
    photos = photos[:1000] if options.quick else photos
    result: dict[str, Any] = {"benchmark": "duplicates", "seed": SEED}
    # First what is measured in memory: the study holds all photos decoded.
    result["growth"] = growth(photos, [5_000, 10_000] if options.quick else [10_000, 100_000, 1_000_000])
    result["milliseconds"] = cost(photos, 50 if options.quick else 200, 3 if options.quick else 9)
    result["study"] = study(photos, 80 if options.quick else PLANTED, options.sheet)
    spent = result["milliseconds"]
    last, before = result["growth"][-1], result["growth"][-2]
    result["ratios"] = {
        "recall": result["study"]["softclip"]["recall"],
        "precision": result["study"]["softclip"]["precision"],
        "signature_of_decode": spent["signature"] / spent["decode"],
        "cpu_growth_over_size_growth": (last["cpu_seconds"] / before["cpu_seconds"])
        / (last["images"] / before["images"]),
    }
    print_table(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
