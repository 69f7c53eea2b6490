"""What a run keeps of its pairs: the values are those of the softmax, and resume, several processes and groups change nothing."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import gloo, together
from test_objectives_reference import make_settings
from test_training import settings
from torch.nn.functional import normalize

from softclip_cli.audit.records import run_records
from softclip_cli.data.batches import Batch
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.objectives.alignments import COLUMNS
from softclip_cli.objectives.assignment import assigned_targets
from softclip_cli.objectives.embeddings import Embeddings
from softclip_cli.objectives.objective import build_objective
from softclip_cli.training import checkpoint
from softclip_cli.training.alignments import AlignmentRecorder, read_alignments
from softclip_cli.training.start import Plan, train

PAIRS = 12


def aligned(name: str, rows: slice = slice(None), progress: float = 1.0, groups: torch.Tensor | None = None, **choices):
    generator = torch.Generator().manual_seed(5)
    image, text = (normalize(torch.randn(PAIRS, 6, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    scale = torch.tensor(9.0, dtype=torch.float64)
    objective = build_objective(make_settings(name, **choices), embed_dim=6)
    output = objective(
        Embeddings(image[rows], text[rows]), None, scale, progress, groups=groups, diagnostics=True, alignments=True
    )
    assert output.alignments is not None
    return objective, image, text, scale, dict(zip(COLUMNS, output.alignments.T.double(), strict=True))


@pytest.mark.parametrize("grouped", [False, True])
def test_a_pairs_values_are_those_of_the_softmax_over_the_batch(grouped):
    groups = torch.arange(PAIRS) // 2 if grouped else None
    _, image, text, scale, found = aligned("clip", groups=groups, multi_positive=grouped)
    v, t, k = image.numpy(), text.numpy(), scale.item()
    for i in range(PAIRS):
        others = [j for j in range(PAIRS) if j != i and not (grouped and j // 2 == i // 2)]
        own = v[i] @ t[i]
        for name, margin, rest in (
            ("image_to_text", "image_margin", [v[i] @ t[j] for j in others]),
            ("text_to_image", "text_margin", [v[j] @ t[i] for j in others]),
        ):
            total = np.exp(k * own) + sum(np.exp(k * score) for score in rest)
            assert found[name][i].item() == pytest.approx(np.log(np.exp(k * own) / total), abs=1e-6)
            assert found[margin][i].item() == pytest.approx(own - max(rest), abs=1e-6)
        assert found["cosine"][i].item() == pytest.approx(own, abs=1e-6)
        assert found["own_weight"][i] == 1


@pytest.mark.parametrize("rule", ["softmax", "sinkhorn"])
def test_the_own_weight_is_that_of_the_target(rule):
    alpha = 0.6
    objective, image, text, scale, found = aligned("psd", rule=rule, mix="blend", alpha_start=alpha, alpha_end=alpha)
    of_images, of_texts = assigned_targets(objective.choice, image, text, scale)
    soft = (of_images.diagonal() + of_texts.diagonal()) / 2
    torch.testing.assert_close(found["own_weight"], (1 - alpha) + alpha * soft, atol=1e-6, rtol=0)


def test_asking_for_them_changes_neither_loss_nor_diagnostics():
    generator = torch.Generator().manual_seed(6)
    image, text = (normalize(torch.randn(PAIRS, 6, generator=generator), dim=1) for _ in range(2))
    outputs = [
        build_objective(make_settings("otter"), embed_dim=6)(
            Embeddings(image, text),
            Embeddings(image, text),
            torch.tensor(9.0),
            0.5,
            diagnostics=True,
            alignments=wanted,
        )
        for wanted in (False, True)
    ]
    assert outputs[0].loss == outputs[1].loss
    assert outputs[0].diagnostics == outputs[1].diagnostics
    assert outputs[0].alignments is None


def test_records_survive_an_interruption_unchanged(colour_corpus, tmp_path):
    """Every epoch's file is the same, byte for byte, after going on from a checkpoint in the middle of an epoch."""
    made = settings(
        colour_corpus,
        schedule={"steps": 15},
        checkpoint={"every": 4, "keep": 9},
        log={"alignments": True, "every": 5},
    )
    whole, cut = train(Plan(made, tmp_path / "whole")), tmp_path / "cut"
    train(Plan(made, cut))
    for step in checkpoint.saved_steps(cut / "checkpoints"):
        if step > 8:
            shutil.rmtree(cut / "checkpoints" / checkpoint.folder_name(step))
    stored = np.load(cut / "alignments" / "epoch-00001.npy", mmap_mode="r+")
    stored[(8 - 6) * 16 :] = 0  # steps that are to be repeated write all of it again
    del stored
    (cut / "alignments" / "epoch-00002.npy").unlink()
    train(Plan(made, cut))
    files = sorted(path.name for path in (whole / "alignments").iterdir())
    assert files == ["epoch-00000.npy", "epoch-00001.npy", "epoch-00002.npy"]
    for name in files:
        assert (whole / "alignments" / name).read_bytes() == (cut / "alignments" / name).read_bytes(), name
    epochs = list(read_alignments(whole))
    assert [len(records) for records in epochs] == [96, 96, 48]
    assert sorted(epochs[0]["row"]) == list(range(96))
    assert set(epochs[0]["caption"]) == {0, 1}


def test_records_by_caption_are_means_over_the_epochs_that_saw_it(colour_corpus, tmp_path):
    made = settings(colour_corpus, schedule={"steps": 12}, log={"alignments": True})
    run = train(Plan(made, tmp_path / "run"))
    found = run_records(run, np.arange(0, 2 * 96 + 1, 2))
    values: dict[int, list[float]] = {}
    for records in read_alignments(run):
        for record in records:
            values.setdefault(2 * int(record["row"]) + int(record["caption"]), []).append(float(record["cosine"]))
    assert found["seen"].sum() == 192
    for number in range(192):
        if number in values:
            assert found["seen_cosine"][number] == pytest.approx(np.mean(values[number]), abs=1e-6)
        else:
            assert np.isnan(found["seen_cosine"][number])
    assert run_records(run, np.arange(0, 2 * 50 + 1, 2)) == {}  # of another corpus


def test_without_the_setting_nothing_is_kept(colour_corpus, tmp_path):
    run = train(Plan(settings(colour_corpus), tmp_path / "run"))
    assert not (run / "alignments").exists()
    assert run_records(run, np.arange(97)) == {}


def test_several_processes_keep_what_one_keeps(tmp_path):
    write(tmp_path, 0, 1)
    shutil.move(tmp_path / "alignments", tmp_path / "one")
    together(__file__, 2, str(tmp_path))
    one, two = np.load(tmp_path / "one" / "epoch-00000.npy"), np.load(tmp_path / "alignments" / "epoch-00000.npy")
    assert list(one["row"]) == list(two["row"]) == [*range(PAIRS), *reversed(range(PAIRS))]
    for name in COLUMNS:
        np.testing.assert_allclose(one[name], two[name], rtol=2e-3, err_msg=name)


def write(folder: Path, rank: int, world: int) -> None:
    """Two steps, whose pairs stand the other way round in the second."""
    share = PAIRS // world
    sampler = EpochSampler(2 * PAIRS, PAIRS)
    recorder = AlignmentRecorder(folder, sampler, rank == 0)
    for step in range(2):
        _, *_, found = aligned("otter", slice(rank * share, (rank + 1) * share), teacher="self")
        rows = torch.arange(PAIRS)[rank * share : (rank + 1) * share]
        rows = rows if step == 0 else PAIRS - 1 - rows
        nothing = torch.zeros(share)
        values = torch.stack([found[name] for name in COLUMNS], dim=1).float()
        recorder.add(Batch(step, nothing, nothing, rows, rows, torch.zeros_like(rows)), values)
    recorder.flush()


if __name__ == "__main__":
    number, processes, place = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    with gloo(number, processes, place):
        write(place, number, processes)
