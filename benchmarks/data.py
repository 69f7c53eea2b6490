"""What decoding and preparing cost: training views a second on one core, and pairs a second through `data prepare`.

python benchmarks/data.py [--quick] [--json FILE] [--images DIR] [--workers N]

Views: file bytes → augmented uint8 224 × 224 pixels (RandomResizedCrop with scale 0.9 to 1, bicubic), against open_clip's own training
transform and against the other ways that were considered. One thread, processor time, the ways interleaved image set by image set.

Preparing: a table of photographs of 512 × 384, made smaller to a shorter side of 256, against a `datasets.map` with the same resizing
and JPEG quality followed by `save_to_disk`. Whole processes, start included, on the same number of workers, interleaved.

Photographs come from --images (default: Flickr8k in ../shared/data); without any, pictures are drawn that compress like photographs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
SHARED = Path(__file__).resolve().parents[2] / "shared/data/flickr8k/images"
SIZE, SHORT_SIDE, QUALITY = 224, 256, 90

OURS = """
import sys
from pathlib import Path
from softclip_cli.data.prepare import PrepareOptions, prepare
if __name__ == "__main__":
    source, out, workers, short_side, quality = sys.argv[1:]
    options = PrepareOptions(short_side=int(short_side), quality=int(quality), workers=int(workers))
    print(prepare(source, Path(out), options).info["splits"]["train"]["rows"])
"""

MAP = """
import io, sys
from pathlib import Path
import datasets
from PIL import Image

def smaller(row, root, short_side, quality):
    image = Image.open(Path(root) / row["image"]).convert("RGB")
    factor = short_side / min(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=quality)
    return {"image": {"bytes": stream.getvalue(), "path": None}}

if __name__ == "__main__":
    source, out, workers, short_side, quality = sys.argv[1:]
    data = datasets.load_dataset("json", data_files=source, split="train", cache_dir=out + ".cache")
    features = datasets.Features({**data.features, "image": datasets.Image(decode=False)})
    made = data.map(
        smaller,
        fn_kwargs={"root": str(Path(source).parent), "short_side": int(short_side), "quality": int(quality)},
        features=features,
        num_proc=int(workers) if int(workers) > 1 else None,
    )
    made.save_to_disk(out)
    print(len(made))
"""


def photographs(folder: Path | None, count: int) -> tuple[list[Image.Image], str]:
    """`count` pictures in RGB, and where they come from."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"}) if folder else []
    if files:
        chosen = [files[int(i)] for i in np.linspace(0, len(files) - 1, min(count, len(files)))]
        return [Image.open(path).convert("RGB") for path in chosen], f"{len(chosen)} photographs of {folder}"
    return [drawn(seed) for seed in range(count)], f"{count} drawn pictures (--images DIR takes photographs)"


def drawn(seed: int) -> Image.Image:
    """A picture with detail at all scales, as photographs have: noise whose power falls with the square of the frequency."""
    rng = np.random.default_rng(seed)
    height, width = 180, 240
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    planes = []
    for _ in range(3):
        spectrum = np.fft.fft2(rng.normal(size=(height, width))) / frequency
        plane = np.fft.ifft2(spectrum).real
        planes.append(np.clip(128 + 60 * (plane - plane.mean()) / plane.std(), 0, 255))
    shared = planes[0]
    pixels = np.stack([0.7 * shared + 0.3 * plane for plane in planes], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def jpeg(image: Image.Image, size: tuple[int, int] | None = None) -> bytes:
    """Enlarged (bicubic) where asked for, and encoded as cameras do (4:2:0)."""
    stream = io.BytesIO()
    (image.resize(size, Image.Resampling.BICUBIC) if size else image).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def mixed(images: list[Image.Image]) -> list[bytes]:
    """As from the web: long sides from 240 to 2048 pixels, evenly in the logarithm, a third of them upright."""
    rng, found = np.random.default_rng(0), []
    for number, image in enumerate(images):
        long = round(float(np.exp(rng.uniform(np.log(240), np.log(2048)))))
        short = round(long / float(rng.uniform(1.2, 1.8)))
        found.append(jpeg(image, (short, long) if number % 3 == 0 else (long, short)))
    return found


def ways() -> dict[str, Callable[[bytes], Any]]:
    """From bytes to a view, each way with the same crop."""
    import simplejpeg
    import torch
    from open_clip.transform import image_transform
    from torchvision.io import decode_jpeg

    from softclip_cli.data.decode import Augment, Preprocess, random_box, train_view
    from softclip_cli.data.resize import resize

    torch.set_num_threads(1)
    stock = image_transform(SIZE, is_train=True)
    spec, augment = Preprocess(size=SIZE), Augment()
    rng = np.random.default_rng(0)
    bicubic = Image.Resampling.BICUBIC

    def with_pillow(data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data))
        if min(image.size) >= 2 * 273:
            image.draft("RGB", (image.width // 2, image.height // 2))
        image = image.convert("RGB")
        box = random_box(*image.size, augment, rng)
        return np.asarray(image.resize((SIZE, SIZE), bicubic, box=box, reducing_gap=2.0))

    def cropped(pixels: np.ndarray) -> np.ndarray:
        left, top, right, bottom = random_box(pixels.shape[1], pixels.shape[0], augment, rng)
        return resize(pixels[top:bottom, left:right], SIZE, SIZE)

    return {
        "open_clip": lambda data: stock(Image.open(io.BytesIO(data))),
        "Pillow (scaled decode)": with_pillow,
        "Pillow + torch": lambda data: cropped(np.array(Image.open(io.BytesIO(data)).convert("RGB"))),
        "torchvision + torch": lambda data: cropped(
            decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).numpy()
        ),
        "simplejpeg + torch, whole": lambda data: cropped(simplejpeg.decode_jpeg(data, "RGB")),
        "softclip": lambda data: train_view(data, spec, augment, rng),
    }


def time_views(images: list[Image.Image], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds a view for each way and set of images."""
    sets = {
        "as they are": [jpeg(image) for image in images],
        "512×384": [jpeg(image, (512, 384)) for image in images],
        "mixed, 240 to 2048": mixed(images),
    }
    rows = []
    for name, files in sets.items():
        spent: dict[str, list[float]] = {}
        for _ in range(rounds):
            for way, function in ways().items():
                function(files[0])
                began = time.process_time()
                for data in files:
                    function(data)
                spent.setdefault(way, []).append((time.process_time() - began) / len(files) * 1e3)
        stock = statistics.median(spent["open_clip"])
        for way, found in spent.items():
            taken = statistics.median(found)
            rows.append(
                {
                    "what": "training view",
                    "images": name,
                    "kilobytes": round(sum(map(len, files)) / len(files) / 1e3, 1),
                    "way": way,
                    "ms": round(taken, 3),
                    "ratio_to_open_clip": round(stock / taken, 2),
                }
            )
            print(f"training view   {name:20} {way:26} {taken:7.2f} ms   {stock / taken:5.2f} × open_clip", flush=True)
    return rows


def children_seconds() -> float:
    """Processor time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def time_prepare(images: list[Image.Image], count: int, rounds: int, workers: int) -> list[dict[str, Any]]:
    """Pairs a second of whole processes; the processor time besides, which other jobs on the machine disturb less."""
    folder = Path(tempfile.mkdtemp(prefix="softclip-benchmark-"))
    try:
        lines = []
        for number in range(count):
            # Files that differ, as files do, though the pictures repeat.
            turned = images[number % len(images)].rotate(90 * (number // len(images) % 4), expand=True)
            (folder / f"{number}.jpg").write_bytes(jpeg(turned, (512, 384)))
            lines.append(json.dumps({"image": f"{number}.jpg", "caption": f"photograph number {number}"}))
        table = folder / "pairs.jsonl"
        table.write_text("\n".join(lines) + "\n")
        spent: dict[str, list[float]] = {"datasets.map": [], "softclip": []}
        busy: dict[str, list[float]] = {way: [] for way in spent}
        for turn in range(rounds):
            for way, code in (("datasets.map", MAP), ("softclip", OURS)):
                program = folder / f"{way}.py"  # a file, so that spawned workers can import it
                program.write_text(code)
                out = folder / f"out-{way}-{turn}"
                arguments = [str(table), str(out), str(workers), str(SHORT_SIDE), str(QUALITY)]
                began, busy_before = time.perf_counter(), children_seconds()
                done = subprocess.run([sys.executable, str(program), *arguments], capture_output=True, text=True)
                spent[way].append(time.perf_counter() - began)
                busy[way].append(children_seconds() - busy_before)
                if done.returncode or int(done.stdout.split()[-1]) != count:
                    sys.exit(f"{way} failed:\n{done.stdout}{done.stderr}")
                shutil.rmtree(out)
                shutil.rmtree(str(out) + ".cache", ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    stock = statistics.median(spent["datasets.map"])
    rows = []
    for way, found in spent.items():
        taken = statistics.median(found)
        rows.append(
            {
                "what": "prepare",
                "images": f"{count} of 512×384 to {SHORT_SIDE}",
                "workers": workers,
                "way": way,
                "pairs_per_second": round(count / taken, 1),
                "cpu_seconds": round(statistics.median(busy[way]), 2),
                "ratio_to_datasets_map": round(stock / taken, 2),
                "cpu_ratio_to_datasets_map": round(
                    statistics.median(busy["datasets.map"]) / statistics.median(busy[way]), 2
                ),
            }
        )
        print(
            f"prepare         {count} × 512×384 → {SHORT_SIDE}   {way:22} {count / taken:7.0f} pairs/s "
            f"{stock / taken:5.2f} × datasets.map ({workers} workers; {rows[-1]['cpu_seconds']:.1f} s of processor time, "
            f"{rows[-1]['cpu_ratio_to_datasets_map']:.2f} ×)",
            flush=True,
        )
    return rows


def main() -> None:
    """Print one table; the JSON holds the same rows, and the two ratios that are asked for by name."""
    from softclip_cli.resources import usable_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--images", type=Path, default=SHARED if SHARED.is_dir() else None)
    parser.add_argument("--workers", type=int, default=usable_cores())
    options = parser.parse_args()
    images, origin = photographs(options.images, 40 if options.quick else 200)
    print(origin, flush=True)
    rows = time_views(images, 3 if options.quick else 7)
    rows += time_prepare(images, *((600, 1) if options.quick else (8000, 3)), options.workers)
    ratios = {
        "training_decode_512x384": next(
            row["ratio_to_open_clip"] for row in rows if row.get("images") == "512×384" and row["way"] == "softclip"
        ),
        "prepare": rows[-1]["ratio_to_datasets_map"],
    }
    print(
        f"asked for: training decode at 512×384 {ratios['training_decode_512x384']} × (at least 1.9), "
        f"prepare {ratios['prepare']} × (at least 1.5)"
    )
    if options.json:
        options.json.write_text(json.dumps({"images": origin, "ratios": ratios, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
