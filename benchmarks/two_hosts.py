"""Training across two hosts over gloo, the link between them cut, and the run gone on with: on one machine, with network namespaces.

    python benchmarks/two_hosts.py [--quick] [--json FILE] [--steps 60] [--shard none|fsdp] [--timeout 15] [--work DIR]

Two network namespaces, joined by nothing but a pair of virtual cards (veth), each with a host name of its own: a process in one reaches
the other as it would another machine. `torchrun --nnodes 2` runs in each, with the run folder on a file system that both see. Then:

1. a reference run of two processes in one place, without interruption;
2. the same run across the hosts, until some steps behind its first checkpoint;
3. the link goes down. No connection is closed, as when a switch dies: both sides must notice by themselves, end with exit code 6 within
   bounded time, and say which rank is missing;
4. the link comes back, the same command goes on from the checkpoint. Its metrics from there on and its last weights must be the
   reference's.

Needs Linux, root (or CAP_NET_ADMIN and CAP_SYS_ADMIN) and the packages iproute2 and util-linux. `--quick`: 24 steps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HOSTS = ("host-a", "host-b")
SPACES = tuple(f"softclip-{host}-{os.getpid()}" for host in HOSTS)
ADDRESSES = ("10.111.0.1", "10.111.0.2")
CARDS = ("softclip-va", "softclip-vb")
PORT = 29511
SAVED = 10  # the checkpoint to go on from


def obstacle() -> str:
    """Why this machine does not let us, or an empty string."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    for tool, package in (("ip", "iproute2"), ("unshare", "util-linux")):
        if shutil.which(tool) is None:
            return f"the command {tool} is missing: install the package {package}"
    tried = subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True, text=True)
    return f"network namespaces are not permitted here: {tried.stderr.strip()}" if tried.returncode else ""


def ip(*words: str) -> None:
    """Run `ip`, which must succeed."""
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[None]:
    """The two namespaces and the link, while inside."""
    try:
        for space in SPACES:
            ip("netns", "add", space)
        ip("link", "add", CARDS[0], "netns", SPACES[0], "type", "veth", "peer", "name", CARDS[1], "netns", SPACES[1])
        for space, card, address in zip(SPACES, CARDS, ADDRESSES, strict=True):
            ip("-n", space, "addr", "add", f"{address}/24", "dev", card)
            for device in ("lo", card):
                ip("-n", space, "link", "set", device, "up")
        yield
    finally:
        for space in SPACES:  # the cards go with them
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


def set_link(state: str) -> None:
    """The link "down" or "up", at the end of the first host."""
    ip("-n", SPACES[0], "link", "set", CARDS[0], state)


def training(run: Path, corpus: Path, arguments: argparse.Namespace) -> list[str]:
    """The command that each host runs, behind torchrun's own options."""
    settings = ("log.every=1", f"eval.every={arguments.steps}", f"checkpoint.every={SAVED}", "checkpoint.keep=99")
    command = ["-m", "softclip_cli", "train", "--data", str(corpus), "--out", str(run), "--objective", "clip"]
    command += ["--steps", str(arguments.steps), "--batch-size", "32", "--workers", "0", "--device", "cpu"]
    command += ["--precision", "fp32", "--shard", arguments.shard]
    return command + [word for setting in settings for word in ("--set", setting)]


def start(place: int | None, command: list[str], log: Path, timeout: float) -> subprocess.Popen[bytes]:
    """torchrun on one of the hosts, or for both processes where no host is named."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--master-port", str(PORT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SOFTCLIP_RANK_TIMEOUT": str(timeout)}
    if place is None:
        words = [*torchrun, "--nproc-per-node", "2", *command]
    else:
        environment["GLOO_SOCKET_IFNAME"] = CARDS[place]
        torchrun += ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(place)]
        inside = [*torchrun, "--master-addr", ADDRESSES[0], *command]
        words = ["ip", "netns", "exec", SPACES[place], "unshare", "--uts", "sh", "-c"]
        words += [
            f'hostname {HOSTS[place]} 2>/dev/null || echo {HOSTS[place]} > /proc/sys/kernel/hostname; exec "$@"',
            "sh",
        ]
        words += inside
    return subprocess.Popen(
        words, stdout=log.open("wb"), stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Leave none running, nor what they started: torchrun puts each process into a session of its own."""
    for space in SPACES:
        inside = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
        for pid in inside.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    for process in processes:
        if process.poll() is None:
            process.terminate()  # torchrun passes it on
            process.wait()


def wait(processes: list[subprocess.Popen[bytes]], seconds: float) -> list[tuple[int | None, float]]:
    """For each process its exit code, None where it still runs after so long, and the seconds that it took."""
    began = time.monotonic()
    ended: dict[int, float] = {}
    while len(ended) < len(processes) and time.monotonic() - began < seconds:
        for place, process in enumerate(processes):
            if place not in ended and process.poll() is not None:
                ended[place] = time.monotonic() - began
        time.sleep(0.05)
    return [(process.poll(), ended.get(place, seconds)) for place, process in enumerate(processes)]


def metrics(run: Path) -> dict[int, dict[str, float]]:
    """Step → what its line of metrics says, but for what is time."""
    path = run / "metrics.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    timed = ("samples_per_second", "data_wait", "memory")
    return {e["step"]: {k: v for k, v in e.items() if k not in timed} for e in entries if "loss" in e}


def wait_for_step(run: Path, step: int, processes: list[subprocess.Popen[bytes]], logs: list[Path]) -> None:
    """Until the run has written a step's metrics."""
    deadline = time.monotonic() + 180
    while max(metrics(run), default=0) < step:
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            raise SystemExit(f"no step {step}:\n" + "\n".join(log.read_text()[-3000:] for log in logs))
        time.sleep(0.05)


def weights(run: Path) -> bytes:
    """The last checkpoint's weights."""
    return sorted(run.glob("checkpoints/step-*"))[-1].joinpath("model.safetensors").read_bytes()


def explanation(log: Path) -> str:
    """The lines with which softclip ended, without torchrun's own."""
    lines = log.read_text(errors="replace").splitlines()
    said = [re.sub(r"^\[\w+\]:", "", line) for line in lines]
    first = next((i for i, line in enumerate(said) if line.startswith("error:")), None)
    if first is None:
        return ""
    rest = [line for line in said[first + 1 :] if line.startswith(("  why: ", "  try: "))]
    return "\n".join([said[first], *rest[:2]])


def exit_code(log: Path, torchruns: int | None) -> int | None:
    """The training process's own exit code, which torchrun names in its report."""
    found = re.search(r"exitcode\s*:\s*(-?\d+)", log.read_text(errors="replace"))
    return int(found[1]) if found else torchruns


def scene(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All four acts; what was seen."""
    corpus, run, reference = folder / "corpus", folder / "run", folder / "reference"
    generate = [sys.executable, "-m", "softclip_cli", "data", "generate", str(corpus), "--pairs", "256", "-j", "1"]
    subprocess.run(generate, check=True, capture_output=True)

    log = folder / "reference.log"
    alone = [start(None, training(reference, corpus, arguments), log, arguments.timeout)]
    if wait(alone, 300)[0][0] != 0:
        end(alone)
        raise SystemExit(log.read_text()[-3000:])

    command = training(run, corpus, arguments)
    seen: dict[str, Any] = {"steps": arguments.steps, "shard": arguments.shard, "timeout": arguments.timeout}
    with two_hosts():
        logs = [folder / f"{host}.log" for host in HOSTS]
        hosts = [start(place, command, log, arguments.timeout) for place, log in enumerate(logs)]
        try:
            wait_for_step(run, SAVED + 3, hosts, logs)
            set_link("down")
            ended = wait(hosts, arguments.bound)
        finally:
            end(hosts)
        seen["cut_at_step"] = max(metrics(run))
        for host, log, (code, seconds) in zip(HOSTS, logs, ended, strict=True):
            said = explanation(log)
            seen[host] = {"exit_code": exit_code(log, code), "seconds": round(seconds, 1), "said": said}
            if code is None or not said:
                seen[host]["log"] = log.read_text(errors="replace")[-3000:]
        set_link("up")
        logs = [folder / f"{host}, again.log" for host in HOSTS]
        hosts = [start(place, command, log, arguments.timeout) for place, log in enumerate(logs)]
        try:
            codes = [code for code, _ in wait(hosts, 300)]
        finally:
            end(hosts)
    if codes != [0, 0]:
        raise SystemExit("the resumed run failed:\n" + "\n".join(log.read_text()[-3000:] for log in logs))
    told = re.search(r"resuming .* at step (\d+)", "".join(log.read_text() for log in logs))
    seen["resumed_from"] = int(told[1]) if told else None
    seen["metrics_equal"] = metrics(run) == metrics(reference)
    seen["weights_equal"] = weights(run) == weights(reference)
    return seen


def verdict(seen: dict[str, Any], bound: float) -> dict[str, bool]:
    """What was to be shown, and whether it was."""
    ends = [seen[host] for host in HOSTS]
    return {
        f"both hosts end within {bound:.0f} s of the cut": all(e["seconds"] < bound for e in ends),
        "with exit code 6": all(e["exit_code"] == 6 for e in ends),
        "each names the rank that is missing": all(re.search(r"rank \d|cannot be reached", e["said"]) for e in ends),
        "the run goes on from the checkpoint": seen["resumed_from"] == seen["cut_at_step"] // SAVED * SAVED,
        "metrics as in a run without a cut": seen["metrics_equal"],
        "weights as in a run without a cut": seen["weights_equal"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="24 steps")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--shard", choices=("none", "fsdp"), default="none")
    parser.add_argument("--timeout", type=float, default=15.0, help="SOFTCLIP_RANK_TIMEOUT: seconds to wait for a rank")
    parser.add_argument("--bound", type=float, default=60.0, help="seconds within which both hosts must have ended")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep corpus, runs and logs here")
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or (24 if arguments.quick else 60)
    if arguments.steps < SAVED + 10:
        parser.error(f"--steps {arguments.steps} leaves no time to cut the link: at least {SAVED + 10}")
    if why := obstacle():
        print(f"two_hosts: {why}", file=sys.stderr)
        raise SystemExit(5)
    with contextlib.ExitStack() as stack:
        if arguments.work is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = arguments.work
            folder.mkdir(parents=True)
        seen = scene(folder, arguments)
    seen["shown"] = verdict(seen, arguments.bound)
    print(f"link cut after step {seen['cut_at_step']}")
    for host in HOSTS:
        print(f"\n{host}: exit code {seen[host]['exit_code']} after {seen[host]['seconds']} s\n{seen[host]['said']}")
        if "log" in seen[host]:
            print(seen[host]["log"])
    print()
    for what, holds in seen["shown"].items():
        print(f"{'yes' if holds else 'NO ':4} {what}")
    if arguments.json:
        arguments.json.write_text(json.dumps(seen, indent=2) + "\n")
    raise SystemExit(0 if all(seen["shown"].values()) else 1)


if __name__ == "__main__":
    main()
