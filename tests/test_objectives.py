"""Objectives as a user meets them: against open_clip, their settings, diagnostics, precision, state and commands."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_objectives_reference import WIDTH, make_settings, soft_matrices, unit_rows
from torch import Tensor
from typer.testing import CliRunner

from softclip_cli.commands.objectives import app
from softclip_cli.config import Section, build
from softclip_cli.errors import UsageError
from softclip_cli.objectives.diagnostics import collapse_warning
from softclip_cli.objectives.embeddings import Embeddings
from softclip_cli.objectives.objective import build_objective
from softclip_cli.objectives.schedule import alpha_at, soft_rows
from softclip_cli.objectives.settings import MARKS, ObjectiveSettings, advice, presets, resolve


def pair(count: int = 16, seed: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two leaves with gradient."""
    return unit_rows(count, WIDTH, seed, dtype).requires_grad_(), unit_rows(
        count, WIDTH, seed + 100, dtype
    ).requires_grad_()


def assert_same(mine: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    """Same value, same gradients, in float64."""
    assert mine.dtype == theirs.dtype == torch.float64
    torch.testing.assert_close(mine, theirs)
    for ours, stock in zip(torch.autograd.grad(mine, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(ours, stock)


def test_clip_is_open_clips_loss() -> None:
    """The base line of the field."""
    loss = pytest.importorskip("open_clip.loss")
    (image, text), scale = pair(dtype=torch.float64), torch.tensor(1 / 0.07, dtype=torch.float64, requires_grad=True)
    objective = build_objective(ObjectiveSettings(name="clip"), embed_dim=WIDTH)
    mine = objective(Embeddings(image, text), None, scale, 0.0).loss
    assert_same(mine, loss.ClipLoss()(image, text, scale), [image, text, scale])


def test_siglip_is_open_clips_loss() -> None:
    """With its bias."""
    loss = pytest.importorskip("open_clip.loss")
    (image, text), scale = pair(dtype=torch.float64), torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    objective = build_objective(ObjectiveSettings(name="siglip"), embed_dim=WIDTH).double()
    assert objective.logit_bias is not None
    mine = objective(Embeddings(image, text), None, scale, 0.0).loss
    stock = loss.SigLipLoss()(image, text, scale, objective.logit_bias)
    assert_same(mine, stock, [image, text, scale, objective.logit_bias])


def test_distill_is_open_clips_loss() -> None:
    """The sum of its two terms, the teacher at its own scale."""
    loss = pytest.importorskip("open_clip.loss")
    (image, text), scale = pair(dtype=torch.float64), torch.tensor(14.0, dtype=torch.float64, requires_grad=True)
    taught = [side.detach() for side in pair(seed=7, dtype=torch.float64)]
    objective = build_objective(make_settings("distill"), embed_dim=WIDTH)
    mine = objective(Embeddings(image, text), Embeddings(*taught, torch.tensor(33.0)), scale, 0.0).loss
    assert_same(
        mine, sum(loss.DistillClipLoss()(image, text, scale, *taught, torch.tensor(33.0))), [image, text, scale]
    )


@pytest.mark.parametrize("name", presets())
def test_numerical_derivatives_agree(name: str) -> None:
    """gradcheck, with the teacher's scale held still (no gradient flows through it by definition)."""
    choices: dict[str, Any] = {"teacher_scale_fixed": 20.0} if name in ("psd", "softclip", "albef") else {}
    choices |= {"teacher": "ema"} if name == "psd" else {}
    if name == "softclip-sigmoid":
        choices = {"teacher_scale_fixed": 20.0, "initial_logit_bias": 0.0}
    objective = build_objective(make_settings(name, **choices), embed_dim=WIDTH).double().eval()
    taught = Embeddings(*(side.detach() for side in pair(5, 7, torch.float64)), torch.tensor(9.0, dtype=torch.float64))
    image, text = pair(5, 1, torch.float64)
    scale = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)

    def loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        return objective(Embeddings(image, text), taught, scale, 0.5, diagnostics=False).loss

    assert torch.autograd.gradcheck(loss, (image, text, scale))


@pytest.mark.parametrize("name", presets())
def test_half_precision_embeddings_are_computed_in_full(name: str) -> None:
    """bfloat16 input, even under autocast: the loss is that of the same numbers in float32."""
    objective = build_objective(make_settings(name), embed_dim=WIDTH).eval()
    half = [side.detach().bfloat16().requires_grad_() for side in pair()]
    full = [side.detach().float().requires_grad_() for side in half]
    taught = Embeddings(*(side.detach() for side in pair(seed=7)), torch.tensor(9.0))
    with torch.autocast("cpu", torch.bfloat16):
        mine = objective(Embeddings(*half), taught, torch.tensor(14.0), 0.5).loss
    exact = objective(Embeddings(*full), taught, torch.tensor(14.0), 0.5).loss
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, exact)
    mine.backward()
    exact.backward()
    assert half[0].grad is not None and full[0].grad is not None
    torch.testing.assert_close(half[0].grad, full[0].grad.bfloat16())


@pytest.mark.parametrize("name", presets())
def test_value_without_gradient_is_the_same(name: str) -> None:
    """Under no_grad, as in validation, nothing but the work for the gradient is left out."""
    objective = build_objective(make_settings(name), embed_dim=WIDTH).eval()
    image, text = pair()
    taught = Embeddings(*(side.detach() for side in pair(seed=7)), torch.tensor(9.0))
    loss = objective(Embeddings(image, text), taught, torch.tensor(14.0), 0.5).loss
    with torch.no_grad():
        quiet = objective(Embeddings(image, text), taught, torch.tensor(14.0), 0.5).loss
    torch.testing.assert_close(loss.detach(), quiet)
    assert not quiet.requires_grad


# Settings


def test_unknown_objective_names_the_nearest() -> None:
    """A typing error is answered with what was meant."""
    with pytest.raises(ValueError, match=r"no objective named 'pds'. Did you mean 'psd'"):
        ObjectiveSettings(name="pds")


def test_all_wrong_choices_are_told_at_once() -> None:
    """One message for everything, ranges and combinations."""

    class Settings(Section):
        objective: ObjectiveSettings = ObjectiveSettings()

    with pytest.raises(UsageError) as caught:
        build(Settings, {"objective": {"name": "psd", "alpha_end": 1.2, "ema_decay": 1.0, "rool": "softmax"}})
    assert "objective.alpha_end" in caught.value.why
    assert "objective.ema_decay" in caught.value.why
    assert "'rule'" in caught.value.why
    with pytest.raises(UsageError) as caught:
        build(
            Settings,
            {"objective": {"name": "clip", "teacher": "ema", "partition": "blocks", "initial_logit_scale": 500}},
        )
    for words in ("teacher = ema has no use", "partition = blocks needs mix = subset", "initial_logit_scale = 500"):
        assert words in caught.value.why


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"name": "distill"}, "needs teacher_model"),
        ({"name": "psd", "teacher_model": "ViT-B-32"}, "teacher_model is given but teacher = self"),
        ({"name": "psd", "teacher": "none"}, "needs a teacher"),
        ({"name": "psd", "keys": "teacher"}, "keys = teacher needs teacher = ema or frozen"),
        ({"name": "otter", "queue_size": 64}, "a queue or the teacher's keys need"),
        ({"name": "label-smoothing", "mix": "two-head"}, "mix = two-head needs"),
        ({"name": "siglip", "rule": "uniform"}, "loss = sigmoid has no targets whose rows sum to one"),
        ({"name": "softclip-sigmoid", "loss": "softmax"}, "rule = sigmoid needs loss = sigmoid"),
        (
            {"name": "softclip-sigmoid", "teacher": "frozen", "teacher_model": "x"},
            "rule = sigmoid needs loss = sigmoid",
        ),
        ({"name": "psd", "teacher_scale_of": "teacher"}, "scale of its own"),
        ({"name": "cwcl", "teacher_model": "x", "targets": "swapped"}, "no meaning with similarity = image"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(choices: dict[str, Any], words: str) -> None:
    """Before training, not in its first step."""
    with pytest.raises(ValueError, match=words):
        ObjectiveSettings(**choices)


def test_a_queue_must_hold_a_batch() -> None:
    """Told when the batch size is known."""
    settings = ObjectiveSettings(name="albef", queue_size=100)
    assert resolve(settings, batch_size=100).queue_size == 100
    with pytest.raises(UsageError, match="queue_size = 100 is smaller than a batch of 128"):
        resolve(settings, batch_size=128)


def test_a_teacher_of_another_width_cannot_be_the_key() -> None:
    """Its embeddings are compared with the student's directly."""
    settings = make_settings("albef", teacher="frozen")
    with pytest.raises(UsageError, match="768 dimensions"):
        build_objective(settings, embed_dim=512, teacher_dim=768)
    build_objective(make_settings("distill"), embed_dim=512, teacher_dim=768)


def test_a_multiple_replaces_the_presets_fixed_scale() -> None:
    """`teacher_scale` means something in a preset that fixes the scale."""
    choice = resolve(ObjectiveSettings(name="ema-kd", teacher_scale=2.0))
    assert (choice.teacher_scale_fixed, choice.teacher_scale) == (0, 2)


def test_a_self_teacher_without_effect_is_pointed_out() -> None:
    """Allowed, for the test of it, but probably not meant."""
    assert "no gradient" in advice(resolve(ObjectiveSettings(name="psd", teacher_scale=1)))[0]
    lasting = {"alpha_end": 1.0, "alpha_warmup": 0.5}
    assert "collapses" in advice(resolve(ObjectiveSettings(name="psd", **lasting)))[0]
    assert advice(resolve(ObjectiveSettings(name="psd", teacher="ema", **lasting))) == []
    for name in presets():
        assert advice(resolve(make_settings(name))) == []


def test_missing_teacher_is_an_error_with_a_way_out() -> None:
    """Not an attribute error deep inside."""
    image, text = pair()
    for name, given in (("ema-kd", None), ("distill", Embeddings(image, text))):
        objective = build_objective(make_settings(name), embed_dim=WIDTH)
        with pytest.raises(UsageError):
            objective(Embeddings(image, text), given, torch.tensor(14.0), 0.5)


def test_alpha_follows_its_schedule() -> None:
    """Start, end, and where it is between."""
    for name in ("clip", "siglip"):
        assert alpha_at(resolve(ObjectiveSettings(name=name)), 0.5) == 0
    psd = resolve(ObjectiveSettings(name="psd", alpha_start=0.2, alpha_end=0.8))
    assert [alpha_at(psd, p) for p in (0, 0.5, 1)] == pytest.approx([0.2, 0.5, 0.8])
    assert alpha_at(psd, 0.25) == pytest.approx(0.2 + 0.6 * (1 - math.cos(math.pi / 4)) / 2)
    albef = resolve(ObjectiveSettings(name="albef", alpha_warmup=0.1))
    assert [alpha_at(albef, p) for p in (0, 0.05, 0.1, 0.7)] == pytest.approx([0, 0.2, 0.4, 0.4])
    constant = resolve(ObjectiveSettings(name="ema-kd"))
    assert {alpha_at(constant, p) for p in (0.0, 0.3, 1.0)} == {0.5}


# Diagnostics


@pytest.mark.parametrize("name", ["psd", "ema-kd", "otter", "cwcl", "label-smoothing"])
def test_diagnostics_say_what_the_targets_are(name: str) -> None:
    """Entropy, own weight and agreement of the target matrices written out."""
    choices: dict[str, Any] = {"alpha_start": 0.5, "alpha_end": 0.5} if name == "psd" else {}
    objective = build_objective(make_settings(name, **choices), embed_dim=WIDTH).double()
    choice, count = objective.choice, 14
    student = [side.detach() for side in pair(count, 1, torch.float64)]
    taught = student if name == "psd" else [side.detach() for side in pair(count, 7, torch.float64)]
    scale = torch.tensor(12.0, dtype=torch.float64)
    found = objective(
        Embeddings(*student), Embeddings(*taught, scale), scale, 0.5, step=3, seed=4, diagnostics=True
    ).diagnostics
    teacher_scale = torch.tensor(choice.teacher_scale_fixed or 12.0 * choice.teacher_scale)
    targets = soft_matrices(choice, *taught, *taught, teacher_scale)
    weight = torch.full((count, 1), found["alpha"].item(), dtype=torch.float64)
    if choice.mix == "subset":
        weight = soft_rows(count, 0.5, seed=4, step=3).double()[:, None]
        assert found["soft_share"] == 0.5
    both = [(1 - weight) * torch.eye(count) + weight * target for target in targets]
    if name == "cwcl":
        both[1] = torch.eye(count, dtype=torch.float64)
        assert found["soft_share"] == 0.5
    entropy = torch.stack([-torch.xlogy(y, y).sum(dim=1).mean() for y in both]).mean()
    torch.testing.assert_close(found["target_entropy"], entropy)
    torch.testing.assert_close(found["own_weight"], torch.stack([y.diagonal().mean() for y in both]).mean())
    if name in ("psd", "ema-kd"):
        logits = student[0] @ student[1].T
        agree = [(a.argmax(1) == s.argmax(1)).double().mean() for a, s in zip(targets, (logits, logits.T), strict=True)]
        torch.testing.assert_close(found["agreement"], torch.stack(agree).mean())


def test_diagnostics_count_the_pairs_that_are_found() -> None:
    """In-batch accuracy both ways; with groups a hit on a partner counts."""
    image = torch.eye(4)
    text = torch.eye(4)[[0, 1, 3, 2]]
    report = build_objective(ObjectiveSettings(name="clip"), embed_dim=4)(
        Embeddings(image, text), None, torch.tensor(9.0), 0.0
    ).diagnostics
    assert report["accuracy_image_to_text"] == report["accuracy_text_to_image"] == 0.5
    assert report["image_cosine"] == 0
    settings = ObjectiveSettings(name="clip", multi_positive=True)
    report = build_objective(settings, embed_dim=4)(
        Embeddings(image, text), None, torch.tensor(9.0), 0.0, groups=torch.tensor([1, 2, 3, 3])
    ).diagnostics
    assert report["accuracy_image_to_text"] == 1


def test_collapse_is_noticed() -> None:
    """All images alike, however the texts are."""
    objective = build_objective(ObjectiveSettings(name="psd"), embed_dim=WIDTH)
    image, text = pair()
    healthy = objective(Embeddings(image, text), None, torch.tensor(14.0), 0.5).diagnostics
    assert collapse_warning(healthy) is None
    alike = torch.nn.functional.normalize(image.detach() * 0.01 + image.detach()[:1], dim=1)
    fallen = objective(Embeddings(alike, text), None, torch.tensor(14.0), 0.5).diagnostics
    assert "image embeddings have collapsed" in (collapse_warning(fallen) or "")


def test_diagnostics_cost_nothing_unless_asked_for() -> None:
    """And the loss is the same."""
    objective = build_objective(ObjectiveSettings(name="psd"), embed_dim=WIDTH)
    image, text = pair()
    silent = objective(Embeddings(image, text), None, torch.tensor(14.0), 0.5, diagnostics=False)
    assert silent.diagnostics == {}
    assert torch.equal(silent.loss, objective(Embeddings(image, text), None, torch.tensor(14.0), 0.5).loss)


# State


def test_queue_keeps_the_newest_pairs_and_survives_saving() -> None:
    """First in, first out, over the end of the ring; only training fills it."""
    objective = build_objective(ObjectiveSettings(name="albef", queue_size=10), embed_dim=WIDTH)
    batches = [[side.detach() for side in pair(4, seed)] for seed in range(4)]
    image, text = pair(4, 50)

    def step(taught: list[Tensor]) -> None:
        objective(Embeddings(image, text), Embeddings(*taught), torch.tensor(14.0), 0.5)

    queue = objective.queue
    assert queue is not None
    objective.eval()
    step(batches[0])
    assert len(queue.images()) == 0
    objective.train()
    for taught in batches:
        step(taught)
    newest = torch.cat([batches[1][0][2:], batches[2][0], batches[3][0]])
    assert len(queue.images()) == 10
    assert {tuple(row.tolist()) for row in queue.images()} == {tuple(row.tolist()) for row in newest}
    other = build_objective(ObjectiveSettings(name="albef", queue_size=10), embed_dim=WIDTH)
    other.load_state_dict(objective.state_dict())
    assert all(torch.is_tensor(value) for value in objective.state_dict().values())
    objective, queue = other, other.queue
    assert queue is not None
    step(batches[0])
    assert {tuple(row.tolist()) for row in queue.images()} == {
        tuple(row.tolist()) for row in torch.cat([batches[2][0][0:], batches[3][0][0:], batches[0][0]])[-10:]
    }


def test_own_parameters_are_clamped() -> None:
    """The soft head's scale stays within the preset's range."""
    objective = build_objective(ObjectiveSettings(name="ema-kd"), embed_dim=WIDTH)
    assert objective.log_soft_scale is not None
    assert objective.log_soft_scale.item() == pytest.approx(3.9)
    with torch.no_grad():
        objective.log_soft_scale.fill_(7.0)
    objective.clamp_()
    assert objective.log_soft_scale.exp().item() == pytest.approx(100)
    assert objective.log_scale_range == pytest.approx((0, math.log(100)))


def test_tiling_is_chosen_by_size_and_says_why() -> None:
    """Small batches dense, large ones tiled, and the user's word above both."""
    objective = build_objective(ObjectiveSettings(name="psd"), embed_dim=WIDTH)
    assert objective.tiling_reason(256).startswith("dense: 256 x 256")
    assert objective.tiling_reason(32768).startswith("tiled")
    for tiled, word in (("always", "tiled"), ("never", "dense")):
        forced = build_objective(ObjectiveSettings(name="psd", tiled=tiled), embed_dim=WIDTH)
        for pairs in (64, 65536):
            reason = forced.tiling_reason(pairs)
            assert reason.startswith(word)
            assert f"objective.tiled = {tiled}" in reason


# Documentation and commands


def test_the_page_shows_every_preset_and_its_example_runs() -> None:
    """docs/objectives.md: the table has a row a preset, and the Python example works as it stands."""
    page = (Path(__file__).parents[1] / "docs" / "objectives.md").read_text(encoding="utf-8")
    table = page.split("## The presets")[1].split("###")[0]
    assert re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE) == list(presets())
    for setting in re.findall(r"`objective\.(\w+)[ =]", page):
        assert setting in ObjectiveSettings.model_fields
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert example
    names: dict[str, Any] = {}
    exec(compile(example.group(1), "docs/objectives.md", "exec"), names)
    assert names["k"].grad.isfinite()


def test_every_preset_is_marked_and_explained() -> None:
    """Each choice of each row has a known source and is a setting with a help text."""
    for name, preset in presets().items():
        assert preset.choices, name
        for key, (value, mark) in preset.choices.items():
            assert mark in MARKS
            assert ObjectiveSettings.model_fields[key].description
            assert value is not None
        assert resolve(make_settings(name)).name == name


def test_list_and_show_print_what_is_in_the_table() -> None:
    """For a person and as one JSON document."""
    runner = CliRunner()
    listed = runner.invoke(app, ["list", "--json"])
    assert [row["name"] for row in json.loads(listed.stdout)["objectives"]] == list(presets())
    assert "psd" in runner.invoke(app, ["list"]).stdout
    document = json.loads(runner.invoke(app, ["show", "psd", "--json"]).stdout)
    marks = {item["setting"]: item["mark"] for item in document["choices"]}
    assert marks["objective.mix"] == "paper"
    assert marks["objective.alpha_end"] == "ours"
    shown = runner.invoke(app, ["show", "otter"])
    assert shown.exit_code == 0
    assert "objective.sinkhorn_lambda" in shown.stdout


def test_show_of_an_unknown_objective_exits_with_usage() -> None:
    """Exit code 2 and the nearest name."""
    result = CliRunner().invoke(app, ["show", "oter"])
    assert result.exit_code == 2
    assert "otter" in result.stderr
