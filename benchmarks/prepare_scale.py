"""`softclip data prepare` on a large table: does its memory stay bounded, and its time linear?

    python benchmarks/prepare_scale.py [--quick] [--json FILE] [--rows 250000 1000000] [--workers 2] [--work DIR]

Makes a Parquet table of encoded pictures with a caption each (tiny ones, every one different: what is measured is what grows
with the number of rows), then runs the command as a user does, one whole process a size, and watches it. Peak memory is the
largest sum, over the process and its workers, of memory that is theirs alone plus their share of what they share (PSS), seen
every quarter of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROWS, QUICK_ROWS = [250_000, 1_000_000], [20_000, 80_000]
PICTURES = 500  # different ones; a comment in each JPEG makes every row's bytes differ
GROUP = 10_000
TARGETS = {"peak_mib": 1536, "time_a_row_last_to_first": 1.15}


def pictures() -> list[bytes]:
    """Small JPEGs of smooth noise."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(PICTURES):
        pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=80)
        found.append(stream.getvalue())
    return found


def with_comment(data: bytes, text: bytes) -> bytes:
    """The JPEG with a comment segment behind its first marker."""
    return data[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + data[2:]


def make_table(path: Path, rows: int) -> None:
    """Write the table, row group by row group."""
    base = pictures()
    schema = pa.schema([("image", pa.binary()), ("caption", pa.string()), ("key", pa.string())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, GROUP):
            numbers = range(start, min(start + GROUP, rows))
            images = [with_comment(base[n % PICTURES], b"%09d" % n) for n in numbers]
            captions = [f"picture number {n} of a table, seen from afar" for n in numbers]
            writer.write_table(
                pa.table([images, captions, [f"folder{n // 1000:05d}/{n:09d}" for n in numbers]], schema=schema)
            )


def family(pid: int) -> list[int]:
    """The process and all that came from it."""
    found, queue = [], [pid]
    while queue:
        one = queue.pop()
        found.append(one)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                queue.extend(int(child) for child in (task / "children").read_text().split())
    return found


def memory(pid: int) -> int:
    """Proportional set size of a process in bytes; 0 if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def measure(table: Path, out: Path, rows: int, workers: int) -> dict[str, Any]:
    """Prepare, and watch the processes."""
    command = [
        sys.executable,
        "-m",
        "softclip_cli",
        "data",
        "prepare",
        str(table),
        str(out),
        "-j",
        str(workers),
        "--json",
    ]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as result:
        process = subprocess.Popen(command, stdout=result, stderr=subprocess.DEVNULL)
        peak = main = 0
        while process.poll() is None:
            sizes = {pid: memory(pid) for pid in family(process.pid)}
            peak, main = max(peak, sum(sizes.values())), max(main, sizes.get(process.pid, 0))
            time.sleep(0.25)
        seconds = time.perf_counter() - started
        result.seek(0)
        document = json.load(result)
    assert document["counts"]["records"] == rows, document["counts"]
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    return {
        "rows": rows,
        "seconds": round(seconds, 1),
        "rows_per_second": round(rows / seconds),
        "peak_mib": peak >> 20,
        "peak_mib_main": main >> 20,
        "corpus_mib": size >> 20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20,000 and 80,000 rows")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder for the tables and corpora; they are removed")
    arguments = parser.parse_args()
    sizes = arguments.rows or (QUICK_ROWS if arguments.quick else ROWS)
    found = []
    print(f"{'rows':>10} {'seconds':>9} {'rows/s':>8} {'peak MiB':>9} {'of it main':>11} {'corpus MiB':>11}")
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        for rows in sizes:
            table = Path(folder) / "table.parquet"
            make_table(table, rows)
            one = measure(table, Path(folder) / "corpus", rows, arguments.workers)
            found.append(one)
            print(
                f"{rows:>10,} {one['seconds']:>9} {one['rows_per_second']:>8,} {one['peak_mib']:>9,} "
                f"{one['peak_mib_main']:>11,} {one['corpus_mib']:>11,}",
                flush=True,
            )
    first, last = found[0], found[-1]
    measured = {
        "peak_mib": last["peak_mib"],
        "time_a_row_last_to_first": round(last["seconds"] / last["rows"] / (first["seconds"] / first["rows"]), 2),
    }
    targets = [
        {"name": name, "limit": limit, "ratio": measured[name], "reached": measured[name] <= limit}
        for name, limit in TARGETS.items()
    ]
    for target in targets:
        verdict = "reached" if target["reached"] else "NOT reached"
        print(f"{target['name']:<26} at most {target['limit']:<6} {target['ratio']:<6} {verdict}")
    if arguments.json:
        document = {"cores": os.cpu_count(), "workers": arguments.workers, "rows": found, "targets": targets}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
