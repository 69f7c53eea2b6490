"""softclip's evaluation beside clip-benchmark 1.6.2: the same metrics from the same pictures and weights, and how long each takes.

    python benchmarks/evaluation.py [--quick] [--json FILE] [--rows evaluation classifier scoring streaming] [--data DIR]
    python benchmarks/evaluation.py --clip-benchmark DIR --models untrained CHECKPOINT --clock cpu --threads 1

evaluation: one whole process each, in turns, for all sets. Classification: CIFAR-10 and the four domains of PACS; the pictures' own files
lie in class folders for softclip and, byte for byte, in the tars that clip-benchmark documents for one's own data (`wds/NAME`). Retrieval:
Flickr8k's test images, the same files for both. Both see all prompts (clip-benchmark's own for CIFAR-10, open_clip's seven for PACS) and
batches of 64 images. Images that share a caption with another are left out: what clip-benchmark makes of equal scores is chance.
Models: an untrained ViT-S-32-alt (seed 0), or folders that open_clip loads as `local-dir:`, which softclip's checkpoints are.

classifier: the embeddings of 1,000 classes × 80 prompts. scoring: recalls of 2,000 images × 10,000 texts from their embeddings, through
clip-benchmark's own `evaluate` with a model that hands them out. streaming: softclip alone, 100,000 images × 500,000 texts.

clip-benchmark is no dependency: --clip-benchmark names a folder of `pip install --target`, by default a temporary one is filled. It stands
before this Python's own packages, with a numpy before 2.4: later ones refuse to turn an array of one element into a number, as it does.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared/data"
WANTED = ["clip-benchmark==1.6.2", "pycocoevalcap==1.2", "webdataset==0.2.86", "braceexpand==0.1.7", "numpy<2.4"]
DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
UNTRAINED = "untrained"
SHARDS, RECALLS = 4, (1, 5, 10)
ALIKE = 1e-6
NAMES = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "mean_per_class"}
NAMES |= {f"image_retrieval_recall@{k}": f"text_to_image_r{k}" for k in RECALLS}
NAMES |= {f"text_retrieval_recall@{k}": f"image_to_text_r{k}" for k in RECALLS}

OURS = """
import json, sys
from pathlib import Path
from softclip_cli.evaluation.embed import EmbedOptions
from softclip_cli.evaluation.locate import Texts, classification_set
from softclip_cli.evaluation.locate_captions import retrieval_set
from softclip_cli.evaluation.retrieval import retrieval
from softclip_cli.evaluation.zeroshot import zero_shot
from softclip_cli.registry import open_model
if __name__ == "__main__":
    root, model, precision, workers, *sets = sys.argv[1:]
    options = EmbedOptions(64, int(workers), precision)
    model, root, found = open_model(model), Path(root), {}
    for name in sets:
        if name == "flickr8k":
            document = retrieval(model, retrieval_set(str(root / name)), options=options)
        else:
            texts = Texts(None, root / f"{name}-wds/prompts.txt")
            document = zero_shot(model, classification_set(str(root / name), texts=texts), options=options)
        found[name] = {key: entry["value"] for key, entry in document["metrics"].items()}
    print(json.dumps(found))
"""

CLASSIFIER = """
import json, sys, time
import numpy as np, open_clip, torch
if __name__ == "__main__":
    side, model, precision, classes, out = sys.argv[1:]
    names = open_clip.IMAGENET_CLASSNAMES[: int(classes)]
    prompts = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    if side == "softclip":
        from softclip_cli.evaluation.embed import EmbedOptions
        from softclip_cli.evaluation.zeroshot import class_embeddings
        from softclip_cli.registry import open_model
        model = open_model(model)
        start, busy = time.perf_counter(), time.process_time()
        rows = class_embeddings(model, names, prompts, options=EmbedOptions(precision=precision))
    else:
        from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier
        from clip_benchmark.models import load_clip
        model, _, tokenizer = load_clip("open_clip", f"local-dir:{model}", "", None, "cpu")
        model.eval()
        prompts = [prompt.replace("{}", "{c}") for prompt in prompts]
        start, busy = time.perf_counter(), time.process_time()
        rows = zero_shot_classifier(model, tokenizer, names, prompts, "cpu", amp=precision != "fp32").T
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    np.save(out, rows.float().numpy())
    print(json.dumps({"wall": seconds, "cpu": busy}))
"""

SCORING = """
import json, sys, time
import numpy as np, torch
import torch.nn.functional as F
if __name__ == "__main__":
    side, images, each, turns = sys.argv[1], *map(int, sys.argv[2:])
    seeded = torch.Generator().manual_seed(0)
    pictures = F.normalize(torch.randn(images, 256, generator=seeded), dim=1)
    owner = np.repeat(np.arange(images), each)
    captions = F.normalize(0.12 * torch.randn(len(owner), 256, generator=seeded) + pictures[owner], dim=1)

    class Rows:
        encode_image = staticmethod(lambda rows: pictures[rows])
        encode_text = staticmethod(lambda rows: captions[rows])

    def ours():
        from softclip_cli.evaluation.retrieval import retrieval_metrics
        return {name: entry["value"] for name, entry in retrieval_metrics(pictures, captions, owner)[0].items()}

    def theirs():
        from clip_benchmark.metrics.zeroshot_retrieval import evaluate
        rows = torch.arange(images)
        texts = [[int(j) for j in range(i * each, (i + 1) * each)] for i in range(images)]
        batches = [(rows[i : i + 64], texts[i : i + 64]) for i in range(0, images, 64)]
        return evaluate(Rows, batches, torch.tensor, "cpu", amp=False, recall_k_list=[1, 5, 10])

    work = ours if side == "softclip" else theirs
    found = []
    for turn in range(turns + 1):  # the first one imports
        start, busy = time.perf_counter(), time.process_time()
        metrics = work()
        found.append({"wall": time.perf_counter() - start, "cpu": time.process_time() - busy})
    print(json.dumps({"turns": found[1:], "metrics": metrics}))
"""

STREAMING = """
import json, sys, time
from pathlib import Path
import numpy as np, torch
import torch.nn.functional as F
from softclip_cli.evaluation.intervals import bootstrap_mean
from softclip_cli.evaluation.retrieval import retrieval_metrics
from softclip_cli.evaluation.scoring import rank_images, rank_texts

def resident(name):
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if name in line) / 1024

if __name__ == "__main__":
    images, texts, width, share = *map(int, sys.argv[1:4]), float(sys.argv[4])
    seeded = torch.Generator().manual_seed(0)
    owner = np.arange(texts) * images // texts
    pictures = F.normalize(torch.randn(images, width, generator=seeded), dim=1)
    captions = torch.randn(texts, width, generator=seeded)
    for i in range(0, texts, 4096):
        rows = slice(i, i + 4096)
        captions[rows] = F.normalize(0.3 * captions[rows] + pictures[torch.from_numpy(owner[rows])], dim=1)
    retrieval_metrics(pictures[:100], captions[:500], np.arange(500) // 5)  # what is imported and started once
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before, start, busy = resident("VmRSS"), time.perf_counter(), time.process_time()
    if share == 1:
        metrics = {name: entry["value"] for name, entry in retrieval_metrics(pictures, captions, owner)[0].items()}
    else:  # fewer queries against the same galleries, in blocks of the same size; then the intervals of all
        queries = int(texts * share)
        found = rank_images(pictures, captions[:queries], owner[:queries])
        other = rank_texts(pictures[: int(images * share)], captions, owner)
        metrics = {"text_to_image_r1": found.hits(1).mean(), "image_to_text_r1": other.hits(1).mean()}
        bootstrap_mean(np.ones((images, 3)))
        bootstrap_mean(np.ones((images, 3)), np.bincount(owner))
    facts = {"wall": time.perf_counter() - start, "cpu": time.process_time() - busy, "metrics": metrics}
    facts |= {"beyond_mib": resident("VmHWM") - before, "embeddings_mib": (images + texts) * width * 4 / 2**20}
    print(json.dumps(facts))
"""


def write_sets(
    root: Path, data: Path, cifar: int, pacs: int, pairs: int, their_package: Path, names: Path | None
) -> list[str]:
    """The pictures of every set below `root`, in the two forms; returns the sets' names. `pacs`: of each class; `names`: CIFAR-10's."""
    import open_clip

    from softclip_cli.evaluation.locate import Texts, classification_set

    prompts = json.loads((their_package / "datasets/en_zeroshot_classification_templates.json").read_text())["cifar10"]
    whole = classification_set("cifar10", root=data, texts=Texts(names))
    rows: list[tuple[str, bytes]] = []
    left = dict.fromkeys(range(whole.class_count), cifar // whole.class_count)
    for number, label in enumerate(whole.labels.tolist()):
        if left[label]:
            left[label] -= 1
            rows.append((whole.class_label(label), whole.images[number]))
    write_classes(root / "cifar10", rows, ".png", [prompt.replace("{c}", "{}") for prompt in prompts])
    seven = [template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES]
    for domain in DOMAINS:
        folders = sorted(path for path in (data / "pacs" / domain).iterdir() if path.is_dir())
        rows = [(folder.name, path.read_bytes()) for folder in folders for path in sorted(folder.iterdir())[:pacs]]
        write_classes(root / f"pacs-{domain}", rows, ".jpg", seven)
    write_captions(root, data / "flickr8k", pairs)
    return ["cifar10", *(f"pacs-{domain}" for domain in DOMAINS), "flickr8k"]


def write_classes(folder: Path, rows: list[tuple[str, bytes]], suffix: str, prompts: list[str]) -> None:
    """Class folders in `folder`, and the same files in tars as clip-benchmark reads them in `folder`-wds."""
    tars = folder.with_name(f"{folder.name}-wds")
    (tars / "test").mkdir(parents=True)
    names = sorted({name for name, _ in rows})
    members: list[tuple[int, bytes]] = []
    for number, (name, picture) in enumerate(rows):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{number:06d}{suffix}").write_bytes(picture)
        members.append((names.index(name), picture))
    random.Random(0).shuffle(members)  # as published tars are
    for shard in range(SHARDS):
        with tarfile.open(tars / f"test/{shard}.tar", "w") as stream:
            for number, (label, picture) in list(enumerate(members))[shard::SHARDS]:
                for ending, content in ((suffix, picture), (".cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{number:06d}{ending}")
                    info.size = len(content)
                    stream.addfile(info, io.BytesIO(content))
    (tars / "test/nshards.txt").write_text(str(SHARDS))
    (tars / "classnames.txt").write_text("\n".join(name.replace("_", " ") for name in names))
    (tars / "zeroshot_classification_templates.txt").write_text("\n".join(p.replace("{}", "{c}") for p in prompts))
    (tars / "prompts.txt").write_text("\n".join(prompts))


def write_captions(root: Path, source: Path, count: int) -> None:
    """Flickr8k's first test images: a folder with a token file for softclip, and a list in clip-benchmark's form."""
    captions: dict[str, list[str]] = {}
    for line in (source / "Flickr8k.token.txt").read_text().splitlines():
        name, caption = line.split("\t")
        captions.setdefault(name.partition("#")[0], []).append(caption.strip())
    names = (source / "Flickr_8k.testImages.txt").read_text().split()
    times: dict[str, int] = {}
    for name in names:
        for caption in captions[name]:
            times[caption] = times.get(caption, 0) + 1
    kept = [name for name in names if all(times[caption] == 1 for caption in captions[name])][:count]
    images = root / "flickr8k/images"
    images.mkdir(parents=True)
    for name in kept:
        (images / name).write_bytes((source / "images" / name).read_bytes())
    lines = [f"{name}#{k}\t{caption}\n" for name in kept for k, caption in enumerate(captions[name])]
    (root / "flickr8k/Flickr8k.token.txt").write_text("".join(lines))
    theirs = [f"{name},{caption}\n" for name in kept for caption in captions[name]]
    (root / "flickr8k-list.txt").write_text("image,caption\n" + "".join(theirs))


def process(arguments: list[str], theirs: Path | None, folder: Path) -> tuple[dict[str, float], str]:
    """One whole process: its seconds (wall and, with its children, processor time) and what it printed."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [str(theirs) if theirs else root, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)[:300]} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": busy}, done.stdout


def script(folder: Path, name: str, text: str) -> str:
    """A file with this text."""
    path = folder / name
    path.write_text(text)
    return str(path)


def evaluated(
    side: str, precision: str, root: Path, model: Path, sets: list[str], workers: int, theirs: Path
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Seconds of one side's process, and the metrics of each set under softclip's names."""
    if side == "softclip":
        command = [script(root, "ours.py", OURS), str(root), str(model), precision, str(workers), *sets]
        seconds, printed = process(command, None, root)
        return seconds, json.loads(printed.splitlines()[-1])
    datasets = [name if name == "flickr8k" else f"wds/{name}" for name in sets]
    for name in sets:  # its folder is named after the dataset
        link = root / "theirs" / name
        if not link.exists():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(root / ("flickr8k/images" if name == "flickr8k" else f"{name}-wds"))
    command = [
        "-m",
        "clip_benchmark.cli",
        "eval",
        "--dataset",
        *datasets,
        "--dataset_root",
        f"{root}/theirs/{{dataset}}",
    ]
    command += [
        "--annotation_file",
        str(root / "flickr8k-list.txt"),
        "--model",
        f"local-dir:{model}",
        "--pretrained",
        "",
    ]
    command += ["--num_workers", str(workers), "--recall_k", *map(str, RECALLS), "--output", "theirs-{dataset}.json"]
    seconds, _ = process([*command, "--quiet", *(["--no_amp"] if precision == "fp32" else [])], theirs, root)
    found = {}
    for name in sets:
        metrics = json.loads((root / f"theirs-{name}.json").read_text())["metrics"]
        found[name] = {NAMES[key]: value for key, value in metrics.items()}
    return seconds, found


def furthest(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of metrics that both have."""
    return max(abs(one[key] - other[key]) for key in one.keys() & other.keys())


def target(name: str, value: float, limit: float, most: bool = False) -> dict[str, Any]:
    """A figure that was asked for, told and returned."""
    reached = value <= limit if most else value >= limit
    verdict = f"{'at most' if most else 'at least'} {limit:g}: {'reached' if reached else 'NOT reached'}"
    print(f"{name:66} {value:10.3g}   {verdict}", flush=True)
    return {"name": name, "ratio": value, "limit": limit, "reached": reached}


def evaluation_rows(options: argparse.Namespace, work: Path, models: dict[str, Path], theirs: Path) -> Any:
    """Whole processes, in turns."""
    rows, targets = [], []
    sets = write_sets(
        work, options.data, options.cifar, options.pacs, options.pairs, theirs / "clip_benchmark", options.classnames
    )
    for name, model in models.items():
        ways = [("softclip", "fp32"), ("clip-benchmark", "fp32")]
        ways += [] if options.fp32 else [("softclip", "bf16"), ("clip-benchmark", "amp")]
        seconds: dict[tuple[str, str], list[dict[str, float]]] = {way: [] for way in ways}
        metrics: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
        for turn in range(options.rounds):
            for way in ways if turn % 2 == 0 else reversed(ways):
                took, metrics[way] = evaluated(*way, work, model, sets, options.workers, theirs)
                seconds[way].append(took)
                print(
                    f"{name:14} {' '.join(way):22} {took['wall']:8.1f} s   {took['cpu']:8.1f} s of processors",
                    flush=True,
                )
        middle = {way: statistics.median(turn[options.clock] for turn in turns) for way, turns in seconds.items()}
        for way in ways:
            rows.append(
                {
                    "part": "evaluation",
                    "model": name,
                    "contender": way,
                    "seconds": seconds[way],
                    "metrics": metrics[way],
                }
            )
        for one in sets:
            for way in ways:
                cells = "  ".join(
                    f"{key} {metrics[way][one][key]:.4f}" for key in NAMES.values() if key in metrics[way][one]
                )
                print(f"{name:14} {one:18} {' '.join(way):22} {cells}")
        fp32, base = metrics["softclip", "fp32"], ("clip-benchmark", "fp32")
        apart = max(furthest(fp32[one], metrics[base][one]) for one in sets)
        targets.append(target(f"{name}: largest difference of metrics, fp32", apart, ALIKE, most=True))
        targets.append(target(f"{name}: fp32, times as fast", middle[base] / middle["softclip", "fp32"], 2))
        if not options.fp32:
            ratio = middle[base] / middle["softclip", "bf16"]
            targets.append(target(f"{name}: bf16 beside its fp32, times as fast", ratio, 3))
        for way in ways[2:]:
            differs = max(furthest(metrics[way][one], metrics[base][one]) for one in sets)
            print(f"{name}: largest difference of {' '.join(way)} from fp32: {differs:.4f}")
    return rows, targets


def classifier_rows(options: argparse.Namespace, work: Path, models: dict[str, Path], theirs: Path) -> Any:
    """The classifier of ImageNet's classes, prompts encoded in a process that has loaded its model."""
    import numpy as np

    (name, model), *_ = models.items()
    code, rows, found = script(work, "classifier.py", CLASSIFIER), [], {}
    for _ in range(options.rounds):
        for side in ("softclip", "clip-benchmark"):
            out = work / f"{side}.npy"
            command = [code, side, str(model), "fp32", str(options.classes), str(out)]
            took = json.loads(process(command, theirs if side != "softclip" else None, work)[1].splitlines()[-1])
            found.setdefault(side, []).append(took)
            print(f"classifier     {side:22} {took['wall']:8.1f} s   {took['cpu']:8.1f} s of processors", flush=True)
    middle = {side: statistics.median(took[options.clock] for took in turns) for side, turns in found.items()}
    apart = float(np.abs(np.load(work / "softclip.npy") - np.load(work / "clip-benchmark.npy")).max())
    rows = [
        {"part": "classifier", "model": name, "classes": options.classes, "contender": side, "seconds": turns}
        for side, turns in found.items()
    ]
    size = f"classifier of {options.classes:,} classes × 80 prompts"
    return rows, [
        target(f"{size}: largest difference of a number", apart, 1e-5, most=True),
        target(f"{size}, times as fast", middle["clip-benchmark"] / middle["softclip"], 3),
    ]


def scoring_rows(options: argparse.Namespace, work: Path, models: dict[str, Path], theirs: Path) -> Any:
    """Recalls from embeddings."""
    code, found = script(work, "scoring.py", SCORING), {}
    for side in ("softclip", "clip-benchmark"):
        command = [code, side, str(options.score_images), "5", str(options.rounds)]
        found[side] = json.loads(process(command, theirs if side != "softclip" else None, work)[1].splitlines()[-1])
    middle = {side: statistics.median(turn[options.clock] for turn in facts["turns"]) for side, facts in found.items()}
    for side, seconds in middle.items():
        print(f"scoring        {side:22} {seconds:8.3f} s")
    mine = found["softclip"]["metrics"]
    other = {NAMES[key]: value for key, value in found["clip-benchmark"]["metrics"].items()}
    size = f"scoring of {options.score_images:,} images × {5 * options.score_images:,} texts"
    return [{"part": "scoring", "contender": side, **facts} for side, facts in found.items()], [
        target(f"{size}: largest difference of a recall", furthest(mine, other), ALIKE, most=True),
        target(f"{size}, times as fast", middle["clip-benchmark"] / middle["softclip"], 8),
    ]


def streaming_rows(options: argparse.Namespace, work: Path, models: dict[str, Path], theirs: Path) -> Any:
    """Memory of a large gallery."""
    images, texts = (2_000, 10_000) if options.quick else (100_000, 500_000)
    command = [script(work, "streaming.py", STREAMING), str(images), str(texts), str(options.width), str(options.share)]
    facts = json.loads(process(command, None, work)[1].splitlines()[-1])
    row = {
        "part": "streaming",
        "images": images,
        "texts": texts,
        "width": options.width,
        "share": options.share,
        **facts,
    }
    part = "" if options.share == 1 else f", {options.share:.1%} of the queries"
    size = f"streaming, {images:,} images × {texts:,} texts of {options.width}{part}"
    print(
        f"{size}: {facts['wall']:.0f} s, {facts['cpu']:.0f} s of processors; the embeddings are {facts['embeddings_mib']:.0f} MiB"
    )
    return [row], [target(f"{size}: MiB beyond the embeddings", facts["beyond_mib"], 1024, most=True)]


PARTS = {
    "evaluation": evaluation_rows,
    "classifier": classifier_rows,
    "scoring": scoring_rows,
    "streaming": streaming_rows,
}


def install(folder: Path) -> Path:
    """clip-benchmark and what it lacks here, into a folder of its own."""
    command = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *WANTED]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f"clip-benchmark could not be installed:\n{done.stderr[-2000:]}\nfill a folder elsewhere and give --clip-benchmark DIR"
        )
    return folder


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, few pictures: does it run at all")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--rows", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument(
        "--clip-benchmark", type=Path, metavar="DIR", help="a `pip install --target` folder that has it"
    )
    parser.add_argument(
        "--models", nargs="+", default=[UNTRAINED], metavar="DIR", help=f"{UNTRAINED}, checkpoint folders, or both"
    )
    parser.add_argument("--data", type=Path, default=SHARED, help="folder that holds cifar10, pacs and flickr8k")
    parser.add_argument(
        "--classnames", type=Path, metavar="FILE", help="CIFAR-10's class names, where its copy has none: else numbers"
    )
    parser.add_argument("--fp32", action="store_true", help="fp32 alone")
    parser.add_argument("--cifar", type=int, help="pictures of CIFAR-10")
    parser.add_argument("--pacs", type=int, help="pictures of each class and domain of PACS")
    parser.add_argument("--pairs", type=int, help="pictures of Flickr8k, with five captions each")
    parser.add_argument("--classes", type=int, help="classes of the classifier")
    parser.add_argument("--score-images", type=int, default=2000, help="images whose recalls are scored")
    parser.add_argument("--width", type=int, default=64, help="width of the streamed embeddings")
    parser.add_argument(
        "--share", type=float, default=1, help="of the streamed queries to rank, against whole galleries"
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--workers", type=int, default=1, help="decoding processes of both")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="computing threads of both")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="what the ratios are of; cpu with --threads 1"
    )
    options = parser.parse_args()
    quick = options.quick
    for name, small, usual in (
        ("cifar", 20, 2000),
        ("pacs", 2, 40),
        ("pairs", 12, 1000),
        ("classes", 4, 1000),
        ("rounds", 1, 3),
    ):
        if getattr(options, name) is None:
            setattr(options, name, small if quick else usual)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    from softclip_cli.registry import open_model
    from softclip_cli.training.run_folder import processor_name

    print(
        f"{processor_name()}, {options.threads} threads, {options.workers} decoding processes, clock: {options.clock}",
        flush=True,
    )
    rows: list[dict[str, Any]] = []
    targets: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="softclip-benchmark-") as name:
        work = Path(name).resolve()
        needs_theirs = set(options.rows) - {"streaming"}
        theirs = options.clip_benchmark or (install(work / "packages") if needs_theirs else work)
        (work / "seeded").mkdir()
        open_model("ViT-S-32-alt", seed=0).save(work / "seeded")
        models = {
            Path(name).name: work / "seeded" if name == UNTRAINED else Path(name).resolve() for name in options.models
        }
        for part in options.rows:
            found, asked = PARTS[part](options, work, models, theirs.resolve())
            rows += found
            targets += asked
    if options.json:
        document = {
            "benchmark": "evaluation",
            "device": processor_name(),
            "threads": options.threads,
            "workers": options.workers,
            "clock": options.clock,
            "versions": {name: version(name) for name in ("torch", "open_clip_torch")} | {"clip-benchmark": "1.6.2"},
            "rows": rows,
            "targets": targets,
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
