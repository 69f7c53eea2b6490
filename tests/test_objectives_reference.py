"""Every objective against a plain reference: straight softmax matrices and autograd, no code of the package."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from softclip_cli.objectives.embeddings import Embeddings
from softclip_cli.objectives.objective import Objective, build_objective
from softclip_cli.objectives.schedule import soft_rows
from softclip_cli.objectives.settings import ObjectiveSettings, presets

PAIRS, WIDTH, TEACHER_SCALE = 13, 6, 21.0


def unit_rows(count: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random rows of length one."""
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def make_settings(name: str, **choices: Any) -> ObjectiveSettings:
    """Settings of a preset, with the names that frozen teachers need and a queue that fits small tests."""
    if name in ("distill", "cwcl") or choices.get("teacher") == "frozen":
        choices.setdefault("teacher_model", "tiny")
    if name == "albef":
        choices.setdefault("queue_size", 40)
    return ObjectiveSettings(name=name, **choices)


def spread_identity(count: int, groups: Tensor | None) -> Tensor:
    """I, or its rows spread evenly over pairs of one group."""
    if groups is None:
        return torch.eye(count, dtype=torch.float64)
    same = (groups[:, None] == groups[None, :]).double()
    return same / same.sum(dim=1, keepdim=True)


def sinkhorn_rows(cost: Tensor, entropy: float, rounds: int) -> Tensor:
    """The plan as the paper's code states it, in the plain domain, each row divided by its sum."""
    plan = torch.exp(-cost / entropy)
    plan = plan / plan.sum()
    for _ in range(rounds):
        plan = plan / plan.sum(dim=1, keepdim=True) / plan.shape[0]
        plan = plan / plan.sum(dim=0, keepdim=True) / plan.shape[1]
    return plan / plan.sum(dim=1, keepdim=True)


def soft_matrices(
    choice: Any, image: Tensor, text: Tensor, image_keys: Tensor, text_keys: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """A for image rows and for text rows, from the teacher's embeddings."""
    count = image.shape[0]
    if choice.rule == "uniform":
        others = (1 - torch.eye(count, dtype=torch.float64)) / (count - 1)
        return others, others
    forward, backward = image @ text_keys.T, text @ image_keys.T
    if choice.targets == "swapped":
        forward, backward = backward, forward
    if choice.similarity == "image":
        forward = backward = image @ image.T
    drop = 100 * torch.eye(count, dtype=torch.float64) if choice.target_diagonal == "drop" else 0
    if choice.similarity == "cross+intra":
        weighted = choice.intra_weight_image * (image @ image.T - drop) + choice.intra_weight_text * (
            text @ text.T - drop
        )
        forward, backward = forward + weighted, backward + weighted
    elif choice.target_diagonal == "drop":
        forward, backward = forward - drop, backward - drop
    if choice.rule == "cosine":
        weights, reverse = (forward + 1) / 2, (backward + 1) / 2
        return weights / weights.sum(dim=1, keepdim=True), reverse / reverse.sum(dim=1, keepdim=True)
    if choice.rule == "sinkhorn":
        rounds = choice.sinkhorn_iterations
        return tuple(sinkhorn_rows(-part, choice.sinkhorn_lambda, rounds) for part in (forward, backward))  # type: ignore[return-value]
    return (scale * forward).softmax(dim=1), (scale * backward).softmax(dim=1)


MOMENTS = (0.16, 1.3, 3.0, 0.48, 0.05, 0.95)  # share below 0, first and second moment of z; and of random pairs


def reference_weights(image: Tensor, text: Tensor) -> Tensor:
    """The weight of each pair by the formula of pair_weights.py, pair by pair, for MOMENTS."""
    below, first, second, null_below, null_mean, null_second = MOMENTS
    share = 1 - below / null_below
    mean = (first - (1 - share) * null_mean) / share
    match = statistics.NormalDist(mean, ((second - (1 - share) * null_second) / share - mean**2) ** 0.5)
    null = statistics.NormalDist(null_mean, (null_second - null_mean**2) ** 0.5)
    trust = ((mean - null_mean) / null.stdev - 1) / 2
    assert 0.2 < trust < 0.8
    found = []
    for i in range(len(image)):
        rest = [j for j in range(len(image)) if j != i]
        z = 0.0
        for others in ([float(image[i] @ text[j]) for j in rest], [float(image[j] @ text[i]) for j in rest]):
            z += (float(image[i] @ text[i]) - statistics.fmean(others)) / statistics.pstdev(others) / 2
        belongs = 1.0 if z >= mean else share * match.pdf(z) / (share * match.pdf(z) + (1 - share) * null.pdf(z))
        found.append(1 - trust * (1 - belongs))
    weights = torch.tensor(found, dtype=torch.float64)
    return weights / weights.mean()


def reference_loss(
    objective: Objective,
    alpha: float,
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    scale: Tensor,
    *,
    soft: Tensor | None = None,
    groups: Tensor | None = None,
    queue: tuple[Tensor, Tensor] | None = None,
    judged: bool = False,
) -> Tensor:
    """The objective written out, in float64."""
    choice = objective.choice
    image, text = student
    pair_weight = torch.ones(len(image), 1, dtype=torch.float64)
    count = image.shape[0]
    identity = spread_identity(count, groups if choice.multi_positive else None)
    if choice.teacher == "self":
        teacher = image.detach(), text.detach()
    if judged:
        pair_weight = reference_weights(*teacher)[:, None]
    if choice.loss == "sigmoid":
        assert objective.logit_bias is not None
        sign = torch.where(identity > 0, 1.0, -1.0).double()
        logits = scale * image @ text.T + objective.logit_bias
        counts = torch.ones_like(sign) + torch.diag(pair_weight.flatten() - 1)
        loss = -(counts * functional.logsigmoid(sign * logits)).sum() / count
        if choice.rule == "sigmoid":
            sharpness = (
                choice.teacher_scale_fixed / float(scale) if choice.teacher_scale_fixed else choice.teacher_scale
            )
            taught = (scale * teacher[0] @ teacher[1].T + objective.logit_bias).detach() * sharpness
            soft_loss = functional.binary_cross_entropy_with_logits(logits, taught.sigmoid(), reduction="sum") / count
            loss = (1 - alpha) * loss + alpha * soft_loss
    else:
        keep = teacher if choice.teacher in ("ema", "frozen") else (image.detach(), text.detach())
        image_keys, text_keys = keep if choice.keys == "teacher" else (image, text)
        teacher_image_keys, teacher_text_keys = teacher
        if queue is not None:
            image_keys, text_keys = torch.cat([image_keys, queue[0]]), torch.cat([text_keys, queue[1]])
            teacher_image_keys = torch.cat([teacher_image_keys, queue[0]])
            teacher_text_keys = torch.cat([teacher_text_keys, queue[1]])
        teacher_scale = scale.detach() * choice.teacher_scale
        if choice.teacher_scale_of == "teacher":
            teacher_scale = torch.tensor(TEACHER_SCALE).double() * choice.teacher_scale
        if choice.teacher_scale_fixed:
            teacher_scale = torch.tensor(choice.teacher_scale_fixed).double()
        logits = (scale * image @ text_keys.T, scale * text @ image_keys.T)
        soft_scale = None if objective.log_soft_scale is None else objective.log_soft_scale.exp()
        loss = torch.zeros((), dtype=torch.float64)
        members = [torch.arange(count)]
        if choice.partition == "blocks" and soft is not None:
            members = [torch.nonzero(~soft).flatten(), torch.nonzero(soft).flatten()]
        for block in members:
            if len(block) == 0:
                continue
            columns = block if choice.partition == "blocks" else torch.arange(text_keys.shape[0])
            targets: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)
            if choice.rule != "identity" and alpha > 0:
                targets = soft_matrices(
                    choice,
                    teacher[0][block],
                    teacher[1][block],
                    teacher_image_keys[columns],
                    teacher_text_keys[columns],
                    teacher_scale,
                )
            hard = spread_identity(len(block), groups[block] if groups is not None and choice.multi_positive else None)
            hard = functional.pad(hard, (0, len(columns) - len(block)))
            for index, (all_logits, target) in enumerate(zip(logits, targets, strict=True)):
                mine = all_logits[block][:, columns]
                log_p = mine.log_softmax(dim=1)
                if target is None or (index == 1 and choice.soft_directions == "image-to-text"):
                    loss = loss - (pair_weight[block] * hard * log_p).sum() / count / 2
                    continue
                assert not target.requires_grad
                torch.testing.assert_close(target.sum(dim=1), torch.ones(len(block), dtype=torch.float64))
                counts = pair_weight[block]
                weight = torch.full((len(block), 1), alpha, dtype=torch.float64)
                if choice.mix == "subset":
                    assert soft is not None
                    weight = soft[block].double()[:, None]
                if choice.mix in ("blend", "subset"):
                    loss = loss - (counts * ((1 - weight) * hard + weight * target) * log_p).sum() / count / 2
                elif choice.mix == "sum":
                    loss = loss - (counts * (hard + weight * target) * log_p).sum() / count / 2
                else:
                    log_soft = (mine / scale * soft_scale).log_softmax(dim=1)
                    divergence = (counts * functional.kl_div(log_soft, target, reduction="none")).sum()
                    loss = loss + ((1 - alpha) * -(counts * hard * log_p).sum() + alpha * divergence) / count / 2
    loss = loss + choice.cyclic_intra * (image @ image.T - text @ text.T).square().sum() / count
    return loss + choice.cyclic_cross * (image @ text.T - text @ image.T).square().sum() / count


def compare(
    settings: ObjectiveSettings,
    *,
    dtype: torch.dtype = torch.float64,
    tolerance: float = 1e-6,
    scale: float = 17.0,
    progress: float = 0.4,
    groups: Tensor | None = None,
    fill_queue: bool = True,
    judged: bool = False,
    pairs: int = PAIRS,
) -> None:
    """Value and every gradient of the objective against the reference."""
    objective = build_objective(settings, embed_dim=WIDTH, teacher_dim=WIDTH).to(dtype)
    choice = objective.choice
    queue = None
    if objective.queue is not None and fill_queue:
        queue = unit_rows(9, WIDTH, 50, dtype), unit_rows(9, WIDTH, 51, dtype)
        objective.queue.put(*queue)
    if judged:
        assert objective.pair_weights is not None
        objective.pair_weights.moments.copy_(torch.tensor([*MOMENTS, 50.0]))
    if choice.similarity == "image":
        taught = unit_rows(pairs, 4, 3, dtype), unit_rows(pairs, 4, 4, dtype)
    else:
        taught = unit_rows(pairs, WIDTH, 3, dtype), unit_rows(pairs, WIDTH, 4, dtype)
    teacher = None
    if objective.needs_teacher in ("ema", "frozen"):
        teacher = Embeddings(*taught, logit_scale=torch.tensor(TEACHER_SCALE, dtype=dtype))
    image = unit_rows(pairs, WIDTH, 1, dtype).requires_grad_()
    text = unit_rows(pairs, WIDTH, 2, dtype).requires_grad_()
    logit_scale = torch.tensor(scale, dtype=dtype, requires_grad=True)
    own = list(objective.parameters())
    loss = objective(
        Embeddings(image, text), teacher, logit_scale, progress, step=5, seed=8, groups=groups, diagnostics=False
    ).loss
    measured = torch.autograd.grad(3 * loss, [image, text, logit_scale, *own], allow_unused=True)

    alpha = choice.alpha_end
    if choice.alpha_schedule == "linear":
        alpha = choice.alpha_start + (choice.alpha_end - choice.alpha_start) * min(1, progress / choice.alpha_warmup)
    elif choice.alpha_schedule == "cosine":
        way = (1 - math.cos(math.pi * min(1, progress / choice.alpha_warmup))) / 2
        alpha = choice.alpha_start + (choice.alpha_end - choice.alpha_start) * way
    objective = objective.double()
    exact = [item.detach().double().requires_grad_() for item in (image, text, logit_scale)]
    expected_loss = reference_loss(
        objective,
        alpha,
        (exact[0], exact[1]),
        (taught[0].double(), taught[1].double()),
        exact[2],
        soft=soft_rows(pairs, alpha, seed=8, step=5),
        groups=groups,
        queue=None if queue is None else (queue[0].double(), queue[1].double()),
        judged=judged,
    )
    expected = torch.autograd.grad(3 * expected_loss, [*exact, *objective.parameters()], allow_unused=True)
    assert abs(loss.item() - expected_loss.item()) <= tolerance * abs(expected_loss.item())
    for mine, theirs in zip(measured, expected, strict=True):
        if theirs is None:
            assert mine is None or not mine.any()
            continue
        assert mine is not None
        assert (mine.double() - theirs).norm() <= tolerance * theirs.norm() + 1e-12


LAYOUTS = {"dense": {"tiled": "never"}, "tiled": {"tiled": "always", "tile_rows": 4}}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", presets())
def test_preset_agrees_with_the_reference(name: str, layout: str) -> None:
    """Value and gradients in float64, in one piece and in ragged tiles."""
    compare(make_settings(name, **LAYOUTS[layout]))


@pytest.mark.parametrize("scale", [3.0, 95.0])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", presets())
def test_preset_agrees_in_float32_at_small_and_large_scales(name: str, layout: str, scale: float) -> None:
    """Large scales leave the range where exponentials need no shift."""
    compare(make_settings(name, **LAYOUTS[layout]), dtype=torch.float32, tolerance=1e-4, scale=scale)


WEIGHED: list[dict[str, Any]] = [
    {},
    {"teacher": "self"},
    {"rule": "identity"},
    {"mix": "subset"},
    {"mix": "subset", "partition": "blocks"},
    {"mix": "sum"},
    {"mix": "two-head", "initial_soft_logit_scale": 9.0},
    {"soft_directions": "image-to-text"},
    {"queue_size": 40},
    {"keys": "teacher"},
    {"rule": "sinkhorn", "sinkhorn_lambda": 0.4},
    {"rule": "cosine"},
    {"name": "softclip-sigmoid"},
    {"name": "softclip-sigmoid", "teacher": "self", "teacher_scale": 1.7},
    {"name": "softclip-sigmoid", "rule": "identity"},
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("choices", WEIGHED, ids=lambda choices: " ".join(map(str, choices.values())) or "softclip")
def test_weighed_pairs_agree_with_the_reference(choices: dict[str, Any], layout: str) -> None:
    """With a mixture that judges, in every way to mix hard and soft targets."""
    compare(make_settings(**{"name": "softclip"} | choices, **LAYOUTS[layout]), judged=True)


OVERRIDES: list[tuple[str, dict[str, Any]]] = [
    ("psd", {"targets": "swapped"}),
    ("psd", {"targets": "swapped", "teacher": "ema", "alpha_schedule": "linear"}),
    ("psd", {"partition": "blocks"}),
    ("psd", {"partition": "blocks", "targets": "swapped", "teacher": "ema"}),
    ("psd", {"alpha_start": 1.0}),
    ("psd", {"mix": "blend", "teacher_scale": 3.0}),
    ("psd", {"mix": "sum", "teacher_scale_fixed": 30.0}),
    ("psd", {"mix": "two-head", "initial_soft_logit_scale": 9.0}),
    ("psd", {"teacher": "ema", "similarity": "cross+intra", "target_diagonal": "drop", "intra_weight_text": 0.5}),
    ("psd", {"teacher": "ema", "similarity": "cross+intra", "targets": "swapped", "intra_weight_text": 0.5}),
    ("psd", {"similarity": "image", "mix": "blend"}),
    ("psd", {"target_diagonal": "drop"}),
    ("psd", {"soft_directions": "image-to-text"}),
    ("psd", {"rule": "sinkhorn", "teacher": "self", "sinkhorn_lambda": 0.4, "sinkhorn_iterations": 3}),
    ("psd", {"rule": "uniform", "teacher": "none"}),
    ("psd", {"rule": "cosine"}),
    ("psd", {"rule": "cosine", "targets": "swapped", "teacher": "ema"}),
    ("psd", {"queue_size": 30}),
    ("psd", {"queue_size": 30, "teacher": "ema", "targets": "swapped", "keys": "teacher"}),
    ("psd", {"teacher": "ema", "teacher_scale_of": "teacher", "teacher_scale": 0.5}),
    ("ema-kd", {"queue_size": 30}),
    ("ema-kd", {"teacher": "frozen", "alpha_end": 1.0}),
    ("ema-kd", {"partition": "rows", "mix": "subset", "alpha_end": 0.7}),
    ("otter", {"sinkhorn_lambda": 1.5, "intra_weight_image": 0.3}),
    ("otter", {"targets": "swapped", "intra_weight_image": 0.3, "mix": "blend"}),
    ("otter", {"sinkhorn_iterations": 0}),
    ("albef", {"queue_size": 0}),
    ("albef", {"keys": "student", "alpha_warmup": 1.0}),
    ("cwcl", {"soft_directions": "both", "alpha_end": 0.6}),
    ("clip", {"queue_size": 30}),
    ("clip", {"cyclic_intra": 0.7, "cyclic_cross": 0.1}),
    ("siglip", {"cyclic_cross": 0.5}),
    ("siglip", {"rule": "sigmoid", "teacher": "ema", "teacher_scale_fixed": 30.0, "alpha_end": 0.6}),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "choices"), OVERRIDES, ids=lambda value: value if isinstance(value, str) else "")
def test_other_choices_agree_with_the_reference(name: str, choices: dict[str, Any], layout: str) -> None:
    """Every choice of the equation can be exchanged on its own."""
    compare(make_settings(name, **choices, **LAYOUTS[layout]))


@pytest.mark.parametrize("scale", [14.0, 60.0])
@pytest.mark.parametrize("name", ["clip", "psd", "ema-kd", "otter", "albef", "siglip", "softclip-sigmoid", "cwcl"])
def test_larger_batches_keep_their_precision_in_tiles(name: str, scale: float) -> None:
    """Sums over several hundred rows in float32, gathered tile by tile."""
    settings = make_settings(name, tiled="always", tile_rows=64, **({"queue_size": 300} if name == "albef" else {}))
    compare(settings, dtype=torch.float32, tolerance=1e-4, scale=scale, pairs=300)


@pytest.mark.parametrize("name", ["clip", "psd", "otter"])
def test_long_embeddings_do_not_overflow(name: str) -> None:
    """Rows that somebody forgot to normalise: logits of several hundred, still a finite and correct loss."""
    objective = build_objective(make_settings(name), embed_dim=WIDTH)
    image, text = (6 * unit_rows(9, WIDTH, seed, torch.float32) for seed in (1, 2))
    teacher = Embeddings(image, text) if name == "otter" else None
    loss = objective(Embeddings(image, text), teacher, torch.tensor(14.0), 0.0).loss
    assert torch.isfinite(loss)
    if name == "clip":
        logits, own = 14.0 * image.double() @ text.double().T, torch.arange(9)
        exact = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", presets())
def test_groups_share_the_identity(name: str, layout: str) -> None:
    """Pairs of one image or caption are all positives of each other."""
    groups = torch.tensor([5, 1, 5, 2, 9, 9, 9, -3, 4, 1, 6, 7, 8])
    compare(make_settings(name, multi_positive=True, **LAYOUTS[layout]), groups=groups)


def test_groups_are_shared_within_a_block_only() -> None:
    """A positive in the other sub-batch is not in the softmax, so it takes no part of the target."""
    groups = torch.tensor([5, 1, 5, 2, 9, 9, 9, -3, 4, 1, 6, 7, 8])
    compare(make_settings("psd", multi_positive=True, partition="blocks"), groups=groups)


@pytest.mark.parametrize("name", presets())
def test_a_batch_of_one_pair_works(name: str) -> None:
    """A ragged last batch can be this small: the loss is finite, and zero where there is nothing to choose from."""
    objective = build_objective(make_settings(name), embed_dim=WIDTH)
    image, text = unit_rows(1, WIDTH, 1, torch.float32), unit_rows(1, WIDTH, 2, torch.float32)
    teacher = Embeddings(image, text, torch.tensor(9.0)) if objective.needs_teacher in ("ema", "frozen") else None
    loss = objective(Embeddings(image, text), teacher, torch.tensor(14.0), 0.5).loss
    assert torch.isfinite(loss)
    if name not in ("siglip", "softclip-sigmoid", "cyclip"):
        assert abs(loss.item()) < 1e-4
