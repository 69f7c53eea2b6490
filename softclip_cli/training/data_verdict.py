"""From measured rates to a verdict in words: is the trainer fed, what holds it up, and what helps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from softclip_cli.data.rates import Reading

ACCEPTABLE = 0.1  # share of the training time that may be lost to waiting


@dataclass(frozen=True)
class Facts:
    """What was measured, for `judge`.

    Attributes:
        corpus: its path.
        device: kind of the device that trains.
        cores: that this process may use.
        workers: decoding processes that training would have.
        step: samples a second that the training step takes in when it never waits.
        fed: samples a second of training with this data and `workers`.
        loading: samples a second of whole batches, by number of processes.
        decode: training views a second and core.
        reading: by one process in random order.
        in_memory: whether the whole split fits in the memory that is free, so that only the first epoch reads from the disk.
        short_side: what `data prepare --short-side` should be for this model.
        shrink_speed, shrink_bytes: what it would bring, as multiples of now.
    """

    corpus: str
    device: str
    cores: int
    workers: int
    step: float
    fed: float
    loading: dict[int, float]
    decode: float
    reading: Reading
    in_memory: bool
    short_side: int
    shrink_speed: float
    shrink_bytes: float


@dataclass(frozen=True)
class Verdict:
    """What follows.

    Attributes:
        starves: whether more than a tenth of the training time is lost to waiting for data.
        lost: that share.
        bottleneck: "", "disk" or "decoding".
        text: one plain sentence.
        advice: what to do, the best first.
    """

    starves: bool
    lost: float
    bottleneck: str
    text: str
    advice: tuple[str, ...]


def judge(facts: Facts) -> Verdict:
    """From measurements to one verdict with its remedies."""
    lost = max(0.0, 1 - facts.fed / facts.step)
    # The pictures of a short measurement are in memory afterwards, so the disk is judged by what it gave when it was asked first.
    disk = facts.reading.samples_per_second * max(1, facts.workers)
    slow_disk = (facts.reading.from_storage or 0) > 0.5 and disk < facts.step
    if slow_disk and not facts.in_memory:
        lost = max(lost, 1 - disk / facts.step)
    starves = lost > ACCEPTABLE
    bottleneck = "" if not starves else "disk" if slow_disk and disk < facts.fed else "decoding"
    processes = f"{facts.workers} decoding process{'' if facts.workers == 1 else 'es'}"
    if not facts.workers:
        processes = "decoding in the trainer's own process"
    if starves:
        what = {"disk": "reading from the disk", "decoding": "decoding"}[bottleneck]
        text = (
            f"data will starve the trainer: {lost:.0%} of its time goes to waiting for {what} "
            f"({min(facts.fed, facts.step * (1 - lost)):,.0f} of {facts.step:,.0f} samples/s, {processes})"
        )
    else:
        text = (
            f"the trainer is fed: {lost:.0%} of its time goes to waiting "
            f"({min(facts.fed, facts.step):,.0f} of {facts.step:,.0f} samples/s, {processes})"
        )
    return Verdict(starves, lost, bottleneck, text, tuple(_advice(facts, starves, bottleneck, slow_disk)))


def _advice(facts: Facts, starves: bool, bottleneck: str, slow_disk: bool) -> list[str]:
    found = []
    shrinking = f"softclip data prepare {facts.corpus} OUT --short-side {facts.short_side}"
    if slow_disk and (starves or facts.in_memory):
        when = "in the first epoch (then the corpus is in memory)" if facts.in_memory else "in every epoch"
        found.append(
            f"the disk gives {facts.reading.samples_per_second:,.0f} samples/s to a process {when}: copy the corpus to a "
            "faster or local disk"
        )
        if facts.shrink_bytes < 0.8:
            found.append(f"{shrinking}: files of {facts.shrink_bytes:.0%} of the bytes")
    if not starves or bottleneck == "disk":
        return found
    enough = [count for count, rate in sorted(facts.loading.items()) if rate >= facts.step and count > facts.workers]
    if facts.device != "cpu":
        if enough:
            found.append(f"--workers {enough[0]}: measured at {facts.loading[enough[0]]:,.0f} samples/s")
        else:
            best = max(facts.loading, key=lambda count: facts.loading[count])
            if best > facts.workers and facts.loading[best] > 1.1 * facts.loading.get(facts.workers, 0):
                found.append(f"--workers {best}: measured at {facts.loading[best]:,.0f} samples/s, not enough but more")
    if facts.shrink_speed >= 1.15:
        found.append(
            f"{shrinking}: decoding {facts.shrink_speed:.1f} times as fast, files of {facts.shrink_bytes:.0%} of the bytes"
        )
    needed = math.ceil(facts.step / facts.decode)
    if facts.device != "cpu" and needed > facts.cores:
        found.append(
            f"the step takes what about {needed} cores decode, and there are {facts.cores}: more cores beside the device"
        )
    if facts.device == "cpu" and not found:
        found.append(
            "training and decoding share the cores, and the pictures are as small as they should be: nothing to gain"
        )
    return found
