"""The moving average keeps to its formula. (Frozen teachers: test_frozen_teacher.py.)"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from softclip_cli.objectives.teacher import EmaTeacher


def small_net(seed: int) -> nn.Module:
    """A network with parameters, running statistics and an integer counter."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))


def trained(seed: int = 0) -> nn.Module:
    """The same after its lazy layer has seen an input."""
    net = small_net(seed)
    net(torch.rand(6, 3, 5, 5))
    return net


@pytest.mark.parametrize("warmup", [True, False])
def test_average_follows_its_recurrence(warmup: bool) -> None:
    """decay_n = min(decay, (1+n)/(10+n)), over parameters and running statistics; counters are copied."""
    net = trained()
    teacher = EmaTeacher(net, decay=0.7, warmup=warmup)
    expected = {name: value.double() for name, value in net.state_dict().items()}
    for n in range(30):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        net(torch.rand(6, 3, 5, 5))
        teacher.update(net)
        decay = min(0.7, (1 + n) / (10 + n)) if warmup else 0.7
        for name, value in net.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in teacher.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert value == net.state_dict()[name] == 31


def test_masks_of_infinities_stay_what_they_are() -> None:
    """A causal mask is no average: -inf and -inf would give a value that is not a number."""

    class Masked(nn.Module):
        def __init__(self, persistent: bool) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]), persistent=persistent)

    for persistent in (True, False):
        net = Masked(persistent)
        teacher = EmaTeacher(net, decay=0.5, warmup=False)
        with torch.no_grad():
            net.weight.fill_(3)
        teacher.update(net)
        assert torch.equal(teacher.module.get_buffer("mask"), torch.tensor([0.0, -torch.inf]))
        assert torch.equal(teacher.module.get_parameter("weight"), torch.tensor([2.0, 2.0]))


def test_tied_weights_are_averaged_once() -> None:
    """A tensor under two names moves once an update."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    teacher = EmaTeacher(net, decay=0.5, warmup=False)
    before = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.add_(1)
    teacher.update(net)
    torch.testing.assert_close(teacher.module.get_parameter("0.weight"), before + 0.5)


def test_average_takes_no_gradient_and_stays_in_evaluation_mode() -> None:
    """A teacher must neither drop out units nor be trained."""
    teacher = EmaTeacher(trained().train())
    assert not any(module.training for module in teacher.module.modules())
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())


def test_swapping_the_average_in_gives_the_student_back_even_after_an_error() -> None:
    """Evaluation with averaged weights leaves training as it was."""
    net = trained()
    teacher = EmaTeacher(net, decay=0.5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pixels = torch.rand(4, 3, 5, 5)
    with pytest.raises(KeyError), teacher.swapped_into(net.eval()):
        torch.testing.assert_close(net(pixels), teacher.module(pixels))
        raise KeyError
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_average_goes_on_exactly_after_saving_and_loading() -> None:
    """The number of updates is part of the state: the warm-up does not begin again."""
    net = trained()
    teacher, other = EmaTeacher(net, decay=0.9), EmaTeacher(trained(1), decay=0.9)
    for _ in range(3):
        teacher.update(trained(2))
    other.load_state_dict({name: value.clone() for name, value in teacher.state_dict().items()})
    for each in (teacher, other):
        each.update(trained(3))
    for mine, theirs in zip(teacher.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_causal_mask_is_left_as_it_is():
    """A constant buffer of -inf must not be averaged: -inf towards -inf is not a number."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1), persistent=False)

    student = Masked()
    teacher = EmaTeacher(student, decay=0.5, warmup=False)
    with torch.no_grad():
        student.weight.zero_()
    teacher.update(student)
    assert torch.equal(teacher.module.mask, student.mask)
    assert torch.equal(teacher.module.weight, torch.full((2,), 0.5))
