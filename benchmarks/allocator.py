"""What keeping freed memory is worth on a CPU: seconds a batch with and without, whole processes, interleaved.

python benchmarks/allocator.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

CODE = """
import sys, time, torch, timm
from softclip_cli.allocator import keep_freed_memory
if sys.argv[1] == "kept": assert keep_freed_memory()
name, batch, train = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "train"
torch.manual_seed(0)
net = timm.create_model(name, num_classes=0).train(train)
x = torch.randn(batch, 3, 224, 224)
def step():
    with torch.set_grad_enabled(train):
        y = net(x)
    if train: y.sum().backward()
step()
began, used = time.perf_counter(), time.process_time()
for _ in range(int(sys.argv[5])): step()
print(time.perf_counter() - began, time.process_time() - used)
"""


def main() -> None:
    """Print one table; the JSON holds the same rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds, steps = (2, 2) if options.quick else (5, 4)
    cases = [
        ("tf_efficientnet_lite0", 64, "infer"),
        ("tf_efficientnet_lite0", 32, "train"),
        ("vit_small_patch16_224", 16, "train"),
    ]
    rows = []
    for name, batch, mode in cases:
        seconds: dict[str, list[float]] = {"kept": [], "returned": []}
        for _ in range(rounds):
            for kind, found in seconds.items():
                command = [sys.executable, "-c", CODE, kind, name, str(batch), mode, str(steps)]
                wall, _ = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                found.append(float(wall))
        kept, returned = (statistics.median(found) / steps / batch * 1e3 for found in seconds.values())
        rows.append(
            {
                "model": name,
                "batch": batch,
                "mode": mode,
                "kept_ms": kept,
                "returned_ms": returned,
                "ratio": kept / returned,
            }
        )
        print(
            f"{name:24} {mode:6} batch {batch:3}  returned {returned:7.1f} ms/image  kept {kept:7.1f}  ratio {kept / returned:.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
