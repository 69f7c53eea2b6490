"""softclip's trainer beside open_clip's own: pairs a second of whole processes, and whether their losses agree.

    python benchmarks/train_vs_open_clip.py [--quick] [--json FILE] [--models ViT-S-32-alt RN50] [--work DIR]
    python benchmarks/train_vs_open_clip.py --device cuda --models ViT-B-32 --batch-size 512                     # JPEGs
    python benchmarks/train_vs_open_clip.py --device cuda --models ViT-B-32 --batch-size 512 --in-memory         # no decoding

Flickr8k's photographs enlarged to 512 × 384, with their first captions, become a prepared corpus and, by `softclip data export`, tars.
`softclip train` reads the corpus, `open_clip_train.main` the tars: same architecture, batch, steps, seed, worker processes, learning
rates, weight decay, betas, epsilon, clipping and augmentation, objective `clip`. Every contender runs as a whole process, in turns; the
rate of a run is that of all steps behind the warm-up steps, from its own log, and the median of the rounds counts. Nothing is evaluated,
and checkpoints come after the last step.

Curves: one longer run each; the order of the samples differs, so the mean of the last steps is compared.

--cpu-time, with --threads 1 and no worker, counts processor time instead: for a machine that others use. --in-memory hands both trainers
the same few decoded batches, which lie on the device in the form that each wants (uint8 and trimmed texts; normalised float32 and texts
of full length).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data import SHARED, drawn, jpeg  # isort: skip
from PIL import Image

OURS = "softclip"
BETAS, EPS, DECAY, RATE, CLIP = (0.9, 0.98), 1e-6, 0.2, 5e-4, 1.0
BATCHES_IN_MEMORY = 4
AGREEMENT = 0.02
LINE = re.compile(r"Batch \(t\): ([\d.]+), ([\d.]+)/s.* Loss: ([\d.]+)")
# At least this many times the rate of open_clip's best mode, and of its fp32.
TARGETS = {
    ("cpu", "ViT-S-32-alt", False): {"best": 1.7, "fp32": 2.2},
    ("cpu", "RN50", False): {"best": 1.3},
    ("cuda", "ViT-B-32", True): {"best": 1.3},
    ("cuda", "ViT-B-32", False): {"best": 2.0},
}
MODES = {
    ("cpu", "RN50"): ["amp_bf16"],
    ("cpu", ""): ["fp32", "amp_bf16"],
    ("cuda", ""): ["amp_bf16", "amp_bf16+compile"],
}


@dataclass(frozen=True)
class Job:
    """What a contender is asked to do.

    Attributes:
        model: name of an open_clip architecture.
        batch_size, steps, seed, workers, device: of the run.
        data: folder that `make_data` filled.
        in_memory: batches lie on the device.
        cpu_time: seconds are the process's processor time.
        every: steps between lines of the log; open_clip's come each step where that costs nothing (on a CPU).
    """

    model: str
    batch_size: int
    steps: int
    seed: int
    workers: int
    device: str
    data: Path
    in_memory: bool
    cpu_time: bool
    every: int

    @property
    def their_every(self) -> int:
        """Steps between open_clip's lines."""
        return self.every if self.device.startswith("cuda") else 1


def make_data(folder: Path, images: Path | None, count: int) -> None:
    """A corpus in `folder`/corpus and its tars in `folder`/tars; what is there already is taken as it is."""
    if (folder / "tars").is_dir():
        return
    captions: dict[str, str] = {}
    if images is not None and (images.parent / "Flickr8k.token.txt").is_file():
        for line in (images.parent / "Flickr8k.token.txt").read_text().splitlines():
            name, caption = line.split("\t")
            captions.setdefault(name.split("#")[0], caption)
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    names = [name for name in captions if images is not None and (images / name).is_file()][:count]
    print(f"{len(names) or count} {f'photographs of {images}' if names else 'drawn pictures'}, 512 × 384", flush=True)
    lines = []
    for number in range(len(names) or count):
        picture = Image.open(images / names[number]).convert("RGB") if images and names else drawn(number)
        caption = captions[names[number]] if names else f"a drawn picture, number {number}"
        (pictures / f"{number}.jpg").write_bytes(jpeg(picture, (512, 384)))
        lines.append(json.dumps({"image": f"{number}.jpg", "caption": caption}))
    (pictures / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    softclip = [sys.executable, "-m", "softclip_cli", "data"]
    for command in (
        ["prepare", str(pictures / "pairs.jsonl"), str(folder / "corpus")],
        ["export", str(folder / "corpus"), str(folder / "tars"), "--to", "webdataset", "--shard-size", "16"],
    ):
        subprocess.run([*softclip, *command], check=True, capture_output=True, text=True)
    shutil.rmtree(pictures)


def our_command(job: Job, out: Path) -> list[str]:
    """`softclip train`."""
    settings = {
        "data.captions": "first",
        "optimizer.weight_decay": DECAY,
        "optimizer.eps": EPS,
        "optimizer.clip_norm": CLIP,
        "schedule.warmup": warmup(job),
        "log.every": job.every,
        "checkpoint.every": 0,
        "model.reference": job.model,
    }
    chosen = [f"--set={name}={value}" for name, value in settings.items()]
    common = (
        f"--data {job.data / 'corpus'} --objective clip --steps {job.steps} --batch-size {job.batch_size} --lr {RATE}"
    )
    rest = f"--seed {job.seed} --workers {job.workers} --device {job.device} --out {out}"
    return ["train", *common.split(), *rest.split(), *chosen]


def their_command(job: Job, mode: str, name: str) -> list[str]:
    """`open_clip_train.main`."""
    last = len(list((job.data / "tars/train").glob("*.tar"))) - 1
    precision, _, compiled = mode.partition("+")
    options = (
        f"--train-data {job.data}/tars/train/{{00000..{last:05d}}}.tar --dataset-type webdataset --model {job.model} "
        f"--train-num-samples {job.steps * job.batch_size} --epochs 1 --batch-size {job.batch_size} --lr {RATE} --wd {DECAY} "
        f"--beta1 {BETAS[0]} --beta2 {BETAS[1]} --eps {EPS} --grad-clip-norm {CLIP} --warmup {warmup(job)} --seed {job.seed} "
        f"--workers {job.workers} --device {job.device} --precision {precision} --log-every-n-steps {job.their_every} "
        f"--logs none --name {name}"
    )
    return options.split() + (["--torchcompile"] if compiled else [])


def warmup(job: Job) -> int:
    """Steps of linear warm-up."""
    return max(2, job.steps // 10)


def run(contender: str, job: Job, folder: Path) -> list[tuple[float, float]]:
    """One whole process: seconds and loss of each step, as far as its log tells them apart.

    softclip's lines are means over the steps since the last one. open_clip's losses are those of single steps.
    """
    folder.mkdir(parents=True)
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    mine = contender == OURS
    arguments = our_command(job, folder / "run") if mine else their_command(job, contender, "run")
    program = ["-m", "softclip_cli" if mine else "open_clip_train.main"]
    if job.in_memory or job.cpu_time:
        program = [str(Path(__file__).resolve()), "--child", OURS if mine else "open_clip"]
        program += [str(job.data / "corpus") if job.in_memory else "", "cpu" if job.cpu_time else ""]
    done = subprocess.run(
        [sys.executable, *program, *arguments], env=environment, cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{contender} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    if mine:
        lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
        found = [(job.batch_size / line["samples_per_second"], line["loss"]) for line in lines if "loss" in line]
        each = job.every
    else:
        # A rate is of the last step alone; with a line a step it is more exact than the seconds, which are rounded.
        matches = LINE.findall(done.stderr + done.stdout)
        each = job.their_every
        found = [(job.batch_size / float(r) if each == 1 else float(t), float(loss)) for t, r, loss in matches]
    shutil.rmtree(folder)
    if not found:
        sys.exit(f"{contender} wrote no lines:\n{done.stderr[-4000:]}")
    return [line for line in found for _ in range(each)]


def rate(steps: list[tuple[float, float]], job: Job, skip: int) -> float:
    """Pairs a second, without the first `skip` steps."""
    return job.batch_size / statistics.mean(seconds for seconds, _ in steps[skip:])


def speed(job: Job, modes: list[str], rounds: int, skip: int, folder: Path) -> list[dict[str, Any]]:
    """Rows of rates: each contender once a round."""
    rates: dict[str, list[float]] = {name: [] for name in (OURS, *modes)}
    for turn in range(rounds):
        for name in list(rates) if turn % 2 else list(reversed(rates)):
            found = rate(run(name, job, folder / f"{name}-{turn}"), job, skip)
            rates[name].append(found)
            print(f"{job.model:14} round {turn + 1}  {name:18} {found:9.1f} pairs/s", flush=True)
    return [
        {
            "part": "speed",
            "model": job.model,
            "contender": name,
            "pairs_per_second": statistics.median(found),
            "rounds": found,
        }
        for name, found in rates.items()
    ]


def curves(job: Job, mode: str, last: int, folder: Path) -> dict[str, Any]:
    """Mean loss of the last steps, of one run each."""
    row: dict[str, Any] = {"part": "curves", "model": job.model, "mode": mode, "steps": job.steps, "last_steps": last}
    for name in (OURS, mode):
        losses = [loss for _, loss in run(name, job, folder / f"curve-{name}")]
        row[f"{name} losses"] = losses
        row[f"{name} loss"] = statistics.mean(losses[-last:])
        print(
            f"{job.model:14} curve    {name:18} {row[f'{name} loss']:9.4f} mean loss of the last {last} steps",
            flush=True,
        )
    row["difference"] = row[f"{OURS} loss"] / row[f"{mode} loss"] - 1
    return row


def judged(model: str, options: argparse.Namespace, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ratios that were asked for, by name."""
    rates = {row["contender"]: row["pairs_per_second"] for row in rows if row["part"] == "speed"}
    mine = rates.pop(OURS, None)
    found = []
    kind = "cuda" if options.device.startswith("cuda") else "cpu"
    limits = TARGETS.get((kind, model, options.in_memory), {})
    if mine is not None:
        for what in ("best", *rates):
            other = max(rates.values()) if what == "best" else rates[what]
            name = f"{model}: pairs a second of open_clip's {'best mode' if what == 'best' else what}"
            found.append({"name": name, "ratio": mine / other, "limit": limits.get(what)})
    found += [
        {
            "name": f"{model}: loss after {row['steps']} steps of open_clip's",
            "ratio": 1 + row["difference"],
            "limit": 1 - AGREEMENT,
            "high": 1 + AGREEMENT,
        }
        for row in rows
        if row["part"] == "curves"
    ]
    for target in found:
        limit = target["limit"]
        target["reached"] = None if limit is None else limit <= target["ratio"] <= target.get("high", float("inf"))
        asked = f"at least {limit}" if "high" not in target else f"within {AGREEMENT:.0%}"
        verdict = "" if limit is None else f"   {asked}: {'reached' if target['reached'] else 'NOT reached'}"
        print(f"{target['name']:60} {target['ratio']:6.3f}{verdict}", flush=True)
    return found


def child(kind: str, corpus: str, clock: str, arguments: list[str]) -> None:
    """One of the two trainers, whole; on batches that lie on its device where a corpus is named, and with a clock of processor time."""
    if clock:
        time.time = time.perf_counter = time.process_time
    if corpus:
        in_memory(kind, corpus, arguments)
    sys.argv = [kind, *arguments]
    runpy.run_module("softclip_cli" if kind == OURS else "open_clip_train.main", run_name="__main__")


def in_memory(kind: str, corpus: str, arguments: list[str]) -> None:
    """Put batches that lie on the device in the place of what a trainer reads."""
    import torch

    if kind == OURS:
        from softclip_cli.training import start

        stock = start._batches

        def ours(dataset: Any, workers: int, device: torch.device, first: int, last: int) -> Any:
            few = [batch.to(device) for batch in stock(dataset, 0, torch.device("cpu"), 0, BATCHES_IN_MEMORY)]
            return itertools.islice(itertools.cycle(few), first, last)

        start._batches = ours
        return
    from open_clip_train import data as their_data

    from softclip_cli.data.batches import StepDataset, batches
    from softclip_cli.data.corpus import Corpus
    from softclip_cli.data.decode import Augment
    from softclip_cli.data.sampler import EpochSampler
    from softclip_cli.registry import open_model

    def theirs(args: Any, *_: Any, **__: Any) -> dict[str, Any]:
        model = open_model(args.model)
        data = Corpus.open(Path(corpus)).split("train")
        sampler = EpochSampler(len(data), args.batch_size, args.seed)
        view = Augment((0.9, 1.0))
        dataset = StepDataset(data, sampler, model.preprocess, view, model.tokens, "first")
        few = []
        for batch in batches(dataset, 0, BATCHES_IN_MEMORY, 0):
            missing = model.text.context_length - batch.text.shape[1]
            text = torch.nn.functional.pad(batch.text, (0, missing))
            few.append((model.normalise(batch.image).contiguous().to(args.device), text.to(args.device)))

        class Loader:
            num_batches = args.train_num_samples // args.batch_size
            num_samples = args.train_num_samples

            def __iter__(self) -> Any:
                return itertools.islice(itertools.cycle(few), self.num_batches)

        return {"train": their_data.DataInfo(Loader())}

    their_data.get_data = theirs


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, few steps: does it run at all")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument(
        "--models", nargs="+", help="open_clip architectures; default ViT-S-32-alt RN50, or ViT-B-32 on a GPU"
    )
    parser.add_argument(
        "--modes", nargs="+", help="open_clip's precisions, +compile for --torchcompile; default by model"
    )
    parser.add_argument("--parts", nargs="+", choices=["speed", "curves"], default=["speed", "curves"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, help="measured steps of a speed run")
    parser.add_argument("--warm-up", type=int, help="steps before them")
    parser.add_argument("--curve-steps", type=int, help="steps of a curve (the first model alone)")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--workers", type=int, help="decoding processes of both; default 0, or 12 on a GPU")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="computing threads of both")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--in-memory", action="store_true", help="batches that lie on the device")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time (with --threads 1 --workers 0)")
    parser.add_argument(
        "--images", type=Path, default=SHARED if SHARED.is_dir() else None, help="folder of photographs"
    )
    parser.add_argument("--pairs", type=int, help="photographs that are taken")
    parser.add_argument("--work", type=Path, help="where the prepared data stay for the next time")
    options = parser.parse_args()
    cuda, quick = options.device.startswith("cuda"), options.quick
    options.models = options.models or (
        ["ViT-B-32"] if cuda else ["ViT-S-32-alt"] if quick else ["ViT-S-32-alt", "RN50"]
    )
    options.workers = (12 if cuda else 0) if options.workers is None else options.workers
    steps = options.steps or (2 if quick else 100 if cuda else 12)
    skip = options.warm_up if options.warm_up is not None else (1 if quick else 40 if cuda else 4)
    curve_steps = options.curve_steps or (4 if quick else 400 if cuda else 120)
    rounds, last = options.rounds or (1 if quick else 3), max(1, curve_steps // 12 * 4)
    every = 20 if cuda else 1 if quick else 4
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    print(
        f"{processor(options.device)}, {options.threads} threads, {options.workers} decoding processes, batch {options.batch_size}"
    )
    rows: list[dict[str, Any]] = []
    targets = []
    with tempfile.TemporaryDirectory(prefix="softclip-benchmark-") as name:
        data = options.work or Path(name) / "data"
        make_data(data, options.images, options.pairs or (128 if quick else 6000))
        for model in options.models:
            folder = Path(name) / model
            kind = "cuda" if cuda else "cpu"
            modes = options.modes or MODES.get((kind, model)) or MODES[kind, ""]
            fixed = (options.workers, options.device, data, options.in_memory, options.cpu_time, every)
            found: list[dict[str, Any]] = []
            if "speed" in options.parts:
                job = Job(model, options.batch_size, skip + steps, 0, *fixed)
                found += speed(job, modes, rounds, skip, folder)
            if "curves" in options.parts and model == options.models[0] and not options.in_memory:
                job = Job(model, options.batch_size, curve_steps, 0, *fixed)
                mode = "amp_bf16" if "amp_bf16" in modes else modes[-1]
                found.append(curves(job, mode, last, folder))
            for row in found:
                if row["part"] == "speed":
                    print(f"{model:14} median   {row['contender']:18} {row['pairs_per_second']:9.1f} pairs/s")
            targets += judged(model, options, found)
            rows += found
    if options.json:
        document = {
            "benchmark": "train_vs_open_clip",
            "device": processor(options.device),
            "threads": options.threads,
            "workers": options.workers,
            "batch_size": options.batch_size,
            "in_memory": options.in_memory,
            "clock": "processor time" if options.cpu_time else "seconds",
            "versions": {name: version(name) for name in ("torch", "open_clip_torch", "webdataset")},
            "rows": rows,
            "targets": targets,
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


def processor(device: str) -> str:
    """What computes, by name."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    from softclip_cli.training.run_folder import processor_name

    return processor_name()


if __name__ == "__main__":
    main()
