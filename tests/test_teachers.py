"""Teachers: the moving average keeps to its formula; a frozen one's features survive storage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from softclip_cli.errors import ModelError
from softclip_cli.objectives.teacher import EmaTeacher, FrozenTeacher
from softclip_cli.objectives.teacher_features import TeacherFeatures


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


class _Model:
    """A stand-in for the registry's Model."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.ModuleDict({"image": nn.Linear(8 * 8 * 3, 6), "text": nn.Embedding(50, 6)}).train()
        self.seen: list[tuple[int, ...]] = []

    @property
    def logit_scale(self) -> Tensor:
        return torch.tensor(42.0)

    def encode_image(self, pixels: Tensor, normalize: bool = True) -> Tensor:
        self.seen.append(tuple(pixels.shape))
        assert pixels.dtype == torch.uint8
        return self.net["image"](pixels.flatten(1).float())

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        return self.net["text"](tokens).mean(dim=1)


def test_frozen_teacher_sees_the_students_view_in_its_own_size() -> None:
    """A teacher of another input size gets the same picture, resized; embeddings have length one and no gradient."""
    model = _Model()
    teacher = FrozenTeacher(model, size=8)
    image, text = teacher(torch.full((3, 16, 16, 3), 77, dtype=torch.uint8), torch.randint(0, 50, (3, 4)))
    assert model.seen == [(3, 8, 8, 3)]
    plain = functional.normalize(model.net["image"](torch.full((3, 8 * 8 * 3), 77.0)), dim=-1)
    torch.testing.assert_close(image, plain)
    torch.testing.assert_close(torch.cat([image, text]).norm(dim=1), torch.ones(6))
    assert not image.requires_grad
    assert not model.net.training


def split_features(teacher: FrozenTeacher) -> TeacherFeatures:
    """Five rows with 1, 3, 2, 1 and 2 captions."""
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    tokens = torch.randint(0, 50, (9, 4))
    first = torch.tensor([0, 1, 4, 6, 7, 9])
    return TeacherFeatures.compute(teacher, pixels.split(2), tokens.split(4), first)


def test_stored_features_are_those_of_the_rows_and_captions(tmp_path: Path) -> None:
    """What is looked up is what the teacher says of that image and that caption."""
    teacher = FrozenTeacher(_Model(), size=8)
    split_features(teacher).save(tmp_path / "cache" / "teacher.safetensors", {"teacher": "a", "split": "train"})
    stored = TeacherFeatures.load(tmp_path / "cache" / "teacher.safetensors", {"teacher": "a", "split": "train"})
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    tokens = torch.randint(0, 50, (9, 4))
    batch = stored.lookup(torch.tensor([4, 1]), torch.tensor([1, 2]))
    torch.testing.assert_close(batch.image, teacher.image(pixels[[4, 1]]))
    torch.testing.assert_close(batch.text, teacher.text(tokens[[8, 3]]))
    assert batch.logit_scale == 42
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["teacher.safetensors"]


def test_features_of_another_teacher_or_a_broken_file_are_refused(tmp_path: Path) -> None:
    """A cache under everything that shapes it: what differs is named."""
    path = tmp_path / "teacher.safetensors"
    with pytest.raises(ModelError, match="no stored"):
        TeacherFeatures.load(path, {})
    split_features(FrozenTeacher(_Model(), size=8)).save(path, {"teacher": "a", "split": "train"})
    with pytest.raises(ModelError, match="teacher: stored a, wanted b"):
        TeacherFeatures.load(path, {"teacher": "b", "split": "train"})
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="holds no"):
        TeacherFeatures.load(path, {})


def test_a_split_that_was_not_embedded_whole_is_refused() -> None:
    """A lost batch must not shift every later row."""
    teacher = FrozenTeacher(_Model(), size=8)
    with pytest.raises(ModelError, match="1 images and 2 captions embedded, 3 and 2 expected"):
        TeacherFeatures.compute(
            teacher,
            [torch.zeros(1, 8, 8, 3, dtype=torch.uint8)],
            [torch.zeros(2, 4, dtype=torch.int64)],
            torch.tensor([0, 1, 1, 2]),
        )


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
