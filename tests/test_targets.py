"""Properties that every target rule must keep, whatever the embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objectives_reference import LAYOUTS, WIDTH, make_settings, unit_rows
from torch import Tensor

from softclip_cli.objectives.embeddings import Embeddings
from softclip_cli.objectives.objective import Objective, build_objective
from softclip_cli.objectives.schedule import soft_rows
from softclip_cli.objectives.settings import presets

SOFT = ["label-smoothing", "psd", "ema-kd", "otter", "albef", "distill", "cwcl"]
SOFTMAX = ["clip", "cyclip", *SOFT]
quick = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**30)
batch_sizes = st.integers(2, 11)


def objective_for(name: str, width: int = WIDTH, **choices: Any) -> Objective:
    """A preset in float64."""
    return build_objective(make_settings(name, **choices), embed_dim=width, teacher_dim=width).double()


def run(
    objective: Objective,
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    *,
    scale: float = 11.0,
    progress: float = 0.5,
    step: int = 0,
    groups: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Loss, and its gradient for images, texts and the logit scale."""
    dtype = student[0].dtype
    image, text = (side.clone().requires_grad_() for side in student)
    logit_scale = torch.tensor(scale, dtype=dtype, requires_grad=True)
    taught = None
    if objective.needs_teacher in ("ema", "frozen"):
        taught = Embeddings(*teacher, logit_scale=torch.tensor(20.0, dtype=dtype))
    loss = objective(Embeddings(image, text), taught, logit_scale, progress, step=step, groups=groups).loss
    return loss.detach(), list(torch.autograd.grad(loss, [image, text, logit_scale]))


def four(
    count: int, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Student's and teacher's embeddings."""
    image, text, taught_image, taught_text = (unit_rows(count, WIDTH, seed + i, dtype) for i in range(4))
    return (image, text), (taught_image, taught_text)


@pytest.mark.parametrize("name", SOFTMAX)
@quick
@given(count=batch_sizes, seed=seeds, shift=st.floats(-2, 2), tiled=st.booleans())
def test_rows_of_the_target_sum_to_one(name: str, count: int, seed: int, shift: float, tiled: bool) -> None:
    """A constant added to all logits changes no cross entropy if and only if the target's rows sum to one."""
    layout: dict[str, Any] = LAYOUTS["tiled" if tiled else "dense"]
    choices: dict[str, Any] = {"cyclic_intra": 0.0, "cyclic_cross": 0.0} if name == "cyclip" else {}
    # Keys of the teacher's would not be shifted by what is appended to the student's.
    choices |= {"keys": "student", "queue_size": 0} if name == "albef" else {}
    objective = objective_for(name, WIDTH, **choices, **layout)
    student, teacher = four(count, seed)
    plain, _ = run(objective, student, teacher, progress=1.0)
    one = torch.ones(count, 1, dtype=torch.float64)
    shifted, _ = run(
        objective, (torch.cat([student[0], one], 1), torch.cat([student[1], shift * one], 1)), teacher, progress=1.0
    )
    torch.testing.assert_close(shifted, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "choices", [{}, {"targets": "swapped"}, {"mix": "blend"}, {"rule": "sinkhorn"}, {"queue_size": 20}]
)
@quick
@given(count=batch_sizes, seed=seeds)
def test_no_gradient_flows_through_the_targets(choices: dict[str, Any], count: int, seed: int) -> None:
    """A student that teaches itself gets the gradient it would get from a separate teacher that says the same."""
    student, _ = four(count, seed)
    itself = run(objective_for("psd", teacher="self", **choices), student, student)
    apart = run(objective_for("psd", teacher="ema", **choices), student, student)
    torch.testing.assert_close(itself, apart, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SOFT)
def test_without_soft_targets_it_is_clip_bit_for_bit(name: str, dtype: torch.dtype, layout: str) -> None:
    """α = 0 is the plain loss: same bits in value and gradients."""
    choices = {"alpha_start": 0.0, "alpha_end": 0.0, **LAYOUTS[layout]}
    if name == "albef":  # with its momentum keys and queue the logits themselves are others
        choices |= {"keys": "student", "queue_size": 0}
    student, teacher = four(13, 3, dtype)
    mine = run(objective_for(name, **choices).to(dtype), student, teacher, scale=14.0)
    plain = run(objective_for("clip", **LAYOUTS[layout]).to(dtype), student, teacher, scale=14.0)
    assert torch.equal(mine[0], plain[0])
    for ours, theirs in zip(mine[1], plain[1], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", presets())
@quick
@given(count=batch_sizes, seed=seeds, shuffle=st.randoms(use_true_random=False), tiled=st.booleans())
def test_permuting_the_batch_permutes_the_result(name: str, count: int, seed: int, shuffle: Any, tiled: bool) -> None:
    """No pair is special by its place in the batch."""
    choices: dict[str, Any] = {"alpha_start": 1.0, "alpha_end": 1.0} if name == "psd" else {}
    objective = objective_for(name, **choices, **LAYOUTS["tiled" if tiled else "dense"]).eval()
    student, teacher = four(count, seed)
    order = list(range(count))
    shuffle.shuffle(order)
    loss, (image, text, scale) = run(objective, student, teacher)
    moved = run(objective, (student[0][order], student[1][order]), (teacher[0][order], teacher[1][order]))
    expected = (loss, [image[order], text[order], scale])
    torch.testing.assert_close(moved, expected, rtol=1e-8, atol=1e-10)


@quick
@given(count=batch_sizes, seed=seeds, scale=st.floats(1, 100))
def test_a_self_teacher_that_agrees_has_nothing_to_teach(count: int, seed: int, scale: float) -> None:
    """Unswapped, at the student's own scale: p − p is zero on every soft row (methods.md, psd)."""
    student, _ = four(count, seed)
    objective = objective_for("psd", teacher_scale=1.0, alpha_start=1.0, alpha_end=1.0)
    _, gradients = run(objective, student, student, scale=scale)
    for gradient in gradients:
        assert gradient.abs().max() < 1e-12


def test_only_the_hard_rows_pull_when_the_self_teacher_agrees() -> None:
    """With half of the rows soft, the gradient is that of the hard rows' cross entropy alone."""
    student, _ = four(12, 5)
    objective = objective_for("psd", teacher_scale=1.0, alpha_start=0.5, alpha_end=0.5)
    _, (image, text, _) = run(objective, student, student, step=7)
    hard = ~soft_rows(12, 0.5, seed=0, step=7)
    assert hard.sum() == 6
    v, t = (side.clone().requires_grad_() for side in student)
    logits = 11.0 * v @ t.T
    own = torch.arange(12)
    rows = -logits.log_softmax(1)[own, own] - logits.T.log_softmax(1)[own, own]
    expected = torch.autograd.grad(rows[hard].sum() / 12 / 2, [v, t])
    torch.testing.assert_close((image, text), expected)


def test_swapping_or_another_scale_gives_the_self_teacher_something_to_teach() -> None:
    """What makes the default do something at all."""
    student, _ = four(8, 5)
    for choices in ({"targets": "swapped", "teacher_scale": 1.0}, {"teacher_scale": 2.0}):
        _, gradients = run(objective_for("psd", alpha_start=1.0, **choices), student, student)
        assert min(gradient.norm() for gradient in gradients) > 1e-3


@quick
@given(count=st.integers(0, 300), alpha=st.floats(0, 1), seed=seeds, step=st.integers(0, 10**9))
def test_the_random_partition_has_the_share_and_follows_from_seed_and_step(
    count: int, alpha: float, seed: int, step: int
) -> None:
    """Rounded αN rows; drawn again the same; the global random state is left alone."""
    before = torch.random.get_rng_state()
    chosen = soft_rows(count, alpha, seed=seed, step=step)
    assert abs(int(chosen.sum()) - alpha * count) <= 0.5
    assert torch.equal(chosen, soft_rows(count, alpha, seed=seed, step=step))
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_step_draws_other_rows() -> None:
    """No pair stays hard for ever: over many steps each row is soft about as often as α says."""
    often = torch.stack([soft_rows(50, 0.3, seed=1, step=step) for step in range(400)]).double().mean(dim=0)
    assert (often - 0.3).abs().max() < 0.1
    assert not torch.equal(soft_rows(50, 0.3, seed=1, step=0), soft_rows(50, 0.3, seed=2, step=0))


@quick
@given(seed=seeds, ids=st.lists(st.integers(-3, 3), min_size=2, max_size=10), rename=st.permutations(range(-3, 4)))
def test_group_ids_are_names_only(seed: int, ids: list[int], rename: list[int]) -> None:
    """Which numbers stand for the groups does not matter; a group of its own for every pair is no group at all."""
    student, teacher = four(len(ids), seed)
    objective = objective_for("clip", multi_positive=True)
    groups = torch.tensor(ids)
    renamed = torch.tensor([rename[i + 3] for i in ids])
    torch.testing.assert_close(
        run(objective, student, teacher, groups=groups), run(objective, student, teacher, groups=renamed)
    )
    torch.testing.assert_close(
        run(objective, student, teacher, groups=torch.arange(len(ids))), run(objective_for("clip"), student, teacher)
    )
