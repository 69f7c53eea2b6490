"""A frozen teacher in training: it says what the plain model says, and the step's gradient is that of the equation."""

from __future__ import annotations

import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import encoded
from model_folders import folder_with, small
from PIL import Image
from processes import gloo, together
from safetensors import safe_open
from test_objectives_reference import TEACHER_SCALE, reference_loss
from torch import Tensor

from softclip_cli import runs
from softclip_cli.config import build
from softclip_cli.data.batches import StepDataset
from softclip_cli.data.corpus import Corpus, CorpusWriter, Record
from softclip_cli.data.decode import Augment, eval_view
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.errors import DataError, HostError, ModelError, UsageError
from softclip_cli.evaluation.embed import EmbedOptions
from softclip_cli.model import Model
from softclip_cli.objectives.objective import build_objective
from softclip_cli.objectives.settings import ObjectiveSettings
from softclip_cli.registry import open_model
from softclip_cli.training import checkpoint, frozen_teacher
from softclip_cli.training.distributed import World, first_ahead
from softclip_cli.training.encoder import TowerEncoder
from softclip_cli.training.features import teacher_embeddings
from softclip_cli.training.frozen_teacher import MAX_STORED, Circumstances, FrozenTeacher, choose_features
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, prepare, train
from softclip_cli.training.step import StepContext, forward_backward
from softclip_cli.training.teachers import LiveTeacher, StoredTeacher

SMALL: dict[str, Any] = {
    "data": {"batch_size": 16, "workers": 0},
    "schedule": {"steps": 6},
    "log": {"every": 1},
    "eval": {"every": 1000},
    "device": "cpu",
    "precision": "fp32",
}
ROWS = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with one, two or three captions each; the image of row 5 is damaged."""
    path = tmp_path_factory.mktemp("corpora") / "some"
    rng = np.random.default_rng(0)
    with CorpusWriter(path) as writer, writer.split("train") as part:
        for i in range(ROWS):
            picture = encoded(tuple(int(c) for c in rng.integers(0, 255, 3)), size=(50 + i, 60), seed=i)
            captions = [f"caption {k} of picture number {i}" + " and more" * k for k in range(1 + i % 3)]
            part.write(Record(str(i), picture if i != 5 else picture[:200], captions))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A student, and a teacher with another image size, text length, width and tokenizer context."""
    base = tmp_path_factory.mktemp("models")
    other = small("vit")
    other["embed_dim"] = 24
    other["vision_cfg"] |= {"image_size": 48}
    other["text_cfg"] |= {"context_length": 12}
    found = {name: str(folder_with(cfg, base / name)) for name, cfg in (("student", small("vit")), ("teacher", other))}
    teacher = open_model(found["teacher"])
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in teacher.net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        teacher.net.logit_scale.fill_(math.log(TEACHER_SCALE))
    teacher.save(Path(found["teacher"]))
    return found


@pytest.fixture(scope="module")
def tiny_run(colour_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tiny` that has learnt the four colours."""
    made = build(
        TrainSettings,
        SMALL,
        {"data": {"corpus": str(colour_corpus), "captions": "first"}, "schedule": {"steps": 25}, "eval": {"every": 25}},
        {"objective": {"name": "psd"}},
    )
    return train(Plan(made, tmp_path_factory.mktemp("runs") / "teacher"))


def settings(corpus: Path, student: str, teacher: str, **layers: Any) -> TrainSettings:
    return build(
        TrainSettings,
        SMALL,
        {
            "data": {"corpus": str(corpus)},
            "model": {"reference": student},
            "objective": {"name": "distill", "teacher_model": teacher},
        },
        layers,
    )


def dataset(path: Path, model: Model, *, teacher: Model | None = None, captions: str = "random", augment: bool = False):
    data = Corpus.open(path).split("train")
    return StepDataset(
        data,
        EpochSampler(len(data), 12, 1),
        model.preprocess,
        Augment() if augment else None,
        model.tokens,
        captions,
        teacher_tokenize=teacher.tokens if teacher else None,
    )


def stored(path: Path, model: Model, captions: str = "random", texts: bool = True) -> StoredTeacher:
    whole = Corpus.open(path)
    store = teacher_embeddings(
        model, whole, "train", whole.split("train"), captions=captions, texts=texts, options=EmbedOptions(workers=0)
    )
    return StoredTeacher(store, model.logit_scale.detach())


def plain(path: Path, model: Model, row: int, caption: int) -> tuple[Tensor, Tensor]:
    """What the model itself says of one picture and one caption, one by one."""
    record = Corpus.open(path).split("train")[row]
    pixels = torch.from_numpy(eval_view(record["image"]["bytes"], model.preprocess).copy())[None]
    with torch.no_grad():
        text = model.encode_text(model.tokenize([record["captions"][caption]]))
        return model.encode_image(pixels)[0], text[0]


def test_batches_say_which_caption_they_took_and_carry_the_teachers_tokens(corpus, folders):
    """Of the row that was used, which for a damaged image is its neighbour."""
    student, teacher = open_model(folders["student"]), open_model(folders["teacher"])
    split = Corpus.open(corpus).split("train")
    seen, replaced = set(), 0
    for captions in ("random", "first"):
        made = dataset(corpus, student, teacher=teacher, captions=captions)
        for step in range(8):
            batch = made[step]
            said = [split[int(row)]["captions"][int(c)] for row, c in zip(batch.index, batch.caption, strict=True)]
            assert torch.equal(batch.text, student.tokenize(said))
            assert torch.equal(batch.teacher_text, teacher.tokenize(said))
            assert 5 not in batch.index
            replaced += len(batch.replaced)
            if captions == "random":
                seen |= set(batch.caption.tolist())
            else:
                assert not batch.caption.any()
    assert seen == {0, 1, 2}
    assert replaced


@pytest.mark.parametrize("captions", ["random", "first"])
def test_stored_embeddings_are_those_of_the_plain_model(corpus, folders, captions):
    """By row and caption; of a damaged image there is none, and a batch that has it all the same is refused."""
    student, teacher = open_model(folders["student"]), open_model(folders["teacher"])
    asked = stored(corpus, teacher, captions)
    if captions == "first":
        assert len(asked.store.text) == ROWS
    batch = dataset(corpus, student, captions=captions)[0]
    image, text = asked(batch, slice(2, 9))
    for place in range(2, 9):
        v, t = plain(corpus, teacher, int(batch.index[place]), int(batch.caption[place]))
        torch.testing.assert_close(image[place - 2], v, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(text[place - 2], t, rtol=1e-4, atol=1e-5)
    batch.index[3] = 5
    with pytest.raises(DataError, match="row 5"):
        asked(batch, slice(None))


def test_live_embeddings_are_those_of_the_plain_model(corpus, folders):
    """The student's pixels as they are, or resized as Pillow does; the captions through the teacher's own tokenizer."""
    student, teacher = open_model(folders["student"]), open_model(folders["teacher"])
    batch = dataset(corpus, student, teacher=teacher, augment=True)[0]
    image, text = LiveTeacher(student, texts=False)(batch, slice(3, 8))
    torch.testing.assert_close(image, student.encode_image(batch.image[3:8]).detach())
    assert text.shape == (0, 32)
    image, text = LiveTeacher(teacher)(batch, slice(None))
    large = [
        np.asarray(Image.fromarray(view).resize((48, 48), Image.Resampling.BICUBIC)) for view in batch.image.numpy()
    ]
    with torch.no_grad():
        expected = teacher.encode_image(torch.from_numpy(np.stack(large)))
        torch.testing.assert_close(text, teacher.encode_text(batch.teacher_text))
    torch.testing.assert_close(image, expected, rtol=0, atol=5e-3)
    assert not image.requires_grad and not text.requires_grad


@pytest.mark.parametrize("micro_batch", [0, 5])
@pytest.mark.parametrize("name", ["distill", "cwcl"])
def test_the_step_s_gradient_is_that_of_the_written_out_equation(corpus, folders, name, micro_batch):
    """Stored teacher, whole and in micro-batches, against float64 softmax matrices on the plain model's embeddings."""
    student, teacher = open_model(folders["student"]), open_model(folders["teacher"])
    objective = build_objective(ObjectiveSettings(name=name, teacher_model="x"), embed_dim=student.embed_dim)
    batch = dataset(corpus, student)[1]
    asked = stored(corpus, teacher, texts=objective.needs_teacher_text)
    assert len(asked.store.text) == 0 or name == "distill"
    student.train()
    output = forward_backward(
        TowerEncoder(student, torch.float32), objective, batch, StepContext(3, 0.5, 0, micro_batch=micro_batch), asked
    )
    found = {key: p.grad.clone() for key, p in student.net.named_parameters() if p.grad is not None}

    student.net.zero_grad()
    sides = [plain(corpus, teacher, int(row), int(c)) for row, c in zip(batch.index, batch.caption, strict=True)]
    taught = tuple(torch.stack(side).double() for side in zip(*sides, strict=True))
    embeddings = student.encode_image(batch.image).double(), student.encode_text(batch.text).double()
    loss = reference_loss(objective, 1.0, embeddings, taught, student.logit_scale.double())
    loss.backward()
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for key, parameter in student.net.named_parameters():
        error = (found[key] - parameter.grad).norm()
        assert error <= 1e-4 * parameter.grad.norm() + 1e-7, key


CASES = {
    "distill live": {"data": {"teacher_features": "live", "micro_batch": 6}},
    "distill stored": {"data": {"teacher_features": "stored", "micro_batch": 6}},
    "cwcl live": {"objective": {"name": "cwcl"}, "data": {"teacher_features": "live", "captions": "first"}},
    "cwcl stored": {"objective": {"name": "cwcl"}, "data": {"teacher_features": "stored"}},
    "psd stored": {"objective": {"name": "psd", "teacher": "frozen"}, "data": {"augment": "none"}},
    "distill, both trunks frozen": {"model": {"lock": "image,text"}},
}


@pytest.mark.parametrize("case", CASES)
def test_training_with_a_frozen_teacher_resumes_to_the_bit(colour_corpus, tiny_run, folders, tmp_path, case):
    """End to end, the teacher a `tiny` run; what was used is on record, and no checkpoint holds the teacher."""
    student = "tiny" if case == "distill live" else folders["student"]
    made = settings(
        colour_corpus, student, str(tiny_run), **CASES[case], checkpoint={"every": 4, "keep": 9}, schedule={"steps": 7}
    )
    said: list[str] = []
    whole = train(Plan(made, tmp_path / "whole"), lambda kind, facts: said.append(str(facts.get("text"))))
    how = "stored" if "stored" in case or "frozen" in case else "live"
    assert any(line.startswith(f"teacher teacher, {how}: ") for line in said)
    record = runs.Run(whole).data["teacher"]
    assert record["fingerprint"] == open_model(str(tiny_run)).fingerprint()
    assert (record["reference"], record["features"]) == (str(tiny_run), how)

    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / checkpoint.folder_name(7))
    train(Plan(made, cut))
    assert [line["loss"] for line in runs.Run(cut).training] == [line["loss"] for line in runs.Run(whole).training]
    last = [run / "checkpoints" / checkpoint.folder_name(7) for run in (whole, cut)]
    names = set()
    for path in last[0].glob("*.safetensors"):
        with safe_open(path, "pt") as one, safe_open(last[1] / path.name, "pt") as other:
            names |= set(one.keys()) if path.name != "optimizer.safetensors" else set()
            assert all(torch.equal(one.get_tensor(key), other.get_tensor(key)) for key in one.keys())  # noqa: SIM118
    assert names == set(open_model(student, seed=0).net.state_dict())


def divergence(student: Model, teacher: Model, path: Path) -> float:
    """KL of the student's softmax from the teacher's over a batch of pictures and captions, mean of both directions."""
    data = Corpus.open(path).split("val")
    logits = []
    for model in (teacher, student):
        pixels = torch.from_numpy(np.stack([eval_view(row["bytes"], model.preprocess) for row in data["image"]]))
        with torch.no_grad():
            text = model.encode_text(model.tokenize([captions[0] for captions in data["captions"]]))
            logits.append(model.logit_scale * model.encode_image(pixels) @ text.T)
    total = 0.0
    for one, other in (logits, [side.T for side in logits]):
        total += float(torch.nn.functional.kl_div(other.log_softmax(1), one.softmax(1), reduction="batchmean")) / 2
    return total


@pytest.mark.parametrize("features", ["live", "stored"])
def test_the_student_moves_towards_its_teacher(colour_corpus, tiny_run, folders, tmp_path, features):
    """On pictures it was not trained on, its distribution comes close to the teacher's; without the teacher it does not.

    (A student without batch normalisation, whose running statistics lag behind in a run as short as this.)
    """
    teacher, found = open_model(str(tiny_run)), {}
    for objective in ({"name": "distill", "teacher_model": str(tiny_run)}, {"name": "clip"}):
        made = build(
            TrainSettings,
            SMALL,
            {"data": {"corpus": str(colour_corpus), "captions": "first"}, "schedule": {"steps": 20}},
            {"model": {"reference": folders["student"]}, "objective": objective},
            {"data": {"teacher_features": features}} if objective["name"] == "distill" else {},
        )
        run = runs.Run(train(Plan(made, tmp_path / objective["name"])))
        found[objective["name"]] = divergence(open_model(str(run.checkpoint("last"))), teacher, colour_corpus)
    before = divergence(open_model(folders["student"]), teacher, colour_corpus)
    assert found["distill"] < 0.3 * before
    assert found["distill"] < 0.3 * found["clip"]


def case_of(**changes: Any) -> Circumstances:
    return Circumstances(**{**dict.fromkeys(Circumstances.__dataclass_fields__, 0), "before": "", **changes})


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({"frozen_student": True, "augmented": True}, "stored", "no pixels"),
        ({"augmented": True, "rows": 10, "seen": 100}, "live", "augmented views"),
        ({"rows": 10, "seen": 100}, "stored", "the same in every epoch"),
        ({"rows": 10, "seen": 10}, "live", "no longer than an epoch"),
        ({"augmented": True, "teacher_size": 336, "student_size": 224}, "stored", "336 px"),
        ({"rows": 10, "seen": 100, "stored_bytes": MAX_STORED + 1}, "live", "4.0 GiB"),
        ({"augmented": True, "before": "stored"}, "stored", "when this run started"),
    ],
)
def test_stored_or_live_is_chosen_with_a_reason(changes, expected, words):
    chosen, why = choose_features("auto", case_of(**changes))
    assert chosen == expected
    assert words in why
    assert choose_features("live", case_of(**changes)) == ("live", "as asked")


@pytest.mark.parametrize(("augment", "expected"), [("crop", "live"), ("resize-crop", "live"), ("none", "stored")])
def test_every_augmentation_counts_as_one(colour_corpus, folders, tmp_path, augment, expected):
    """A teacher as large as its student, more than one epoch: the views alone decide."""
    made = settings(
        colour_corpus, folders["student"], folders["student"], data={"augment": augment}, schedule={"steps": 7}
    )
    trainer = prepare(Plan(made, tmp_path / "run"), World())
    assert isinstance(trainer.teacher, LiveTeacher if expected == "live" else StoredTeacher)


def test_an_unknown_teacher_is_named_by_its_setting(colour_corpus, tmp_path):
    with pytest.raises(ModelError, match=r"objective\.teacher_model: no model named 'tinny'") as caught:
        train(Plan(settings(colour_corpus, "tiny", "tinny"), tmp_path / "run"))
    assert caught.value.exit_code == 4
    assert "'tiny'" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_width_is_no_key(colour_corpus, folders, tmp_path):
    made = settings(
        colour_corpus,
        folders["student"],
        folders["teacher"],
        objective={"name": "distill", "teacher_model": folders["teacher"], "keys": "teacher"},
    )
    with pytest.raises(UsageError, match="24 dimensions, the student's 32"):
        train(Plan(made, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_changed_since_the_run_started_is_refused(colour_corpus, folders, tmp_path):
    """The name alone does not say which weights a resumed run goes on with."""
    teacher = shutil.copytree(folders["teacher"], tmp_path / "teacher")
    made = settings(colour_corpus, folders["student"], str(teacher), schedule={"steps": 2})
    train(Plan(made, tmp_path / "run"))
    model = open_model(str(teacher))
    with torch.no_grad():
        model.net.visual.proj.mul_(1.5)
    model.save(teacher)
    longer = settings(colour_corpus, folders["student"], str(teacher), schedule={"steps": 3})
    with pytest.raises(ModelError, match="not what it was when this run started"):
        train(Plan(longer, tmp_path / "run"))


def test_embeddings_that_do_not_fit_the_memory_are_refused(colour_corpus, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_teacher, "memory", lambda: (10_000, 10_000))
    made = settings(colour_corpus, folders["student"], folders["teacher"], data={"teacher_features": "stored"})
    # 96 pictures, 192 captions, 24 numbers of four bytes.
    with pytest.raises(HostError, match=r"take 27\.0 KiB"):
        train(Plan(made, tmp_path / "run"))


def test_an_untrained_teacher_is_warned_of(colour_corpus, folders, tmp_path):
    said: list[str] = []
    made = settings(colour_corpus, folders["student"], "tiny", schedule={"steps": 1})
    train(
        Plan(made, tmp_path / "run"),
        lambda kind, facts: said.append(facts["text"]) if kind == "warning" else None,
    )
    assert any("untrained" in line for line in said)


def test_a_pair_of_towers_teaches_images_by_its_pretrained_trunk(folders):
    """Its projections are new; where images alone are compared they are left away."""
    model = open_model(folders["teacher"])
    model.reference = "timm:resnet10t@random+hf:somewhere"
    assert FrozenTeacher(model, texts=False).trunk
    assert not FrozenTeacher(model, texts=True).trunk
    assert "untrained" in FrozenTeacher(model, texts=True).warnings()[0]
    pixels = torch.randint(0, 256, (3, 48, 48, 3), dtype=torch.uint8)
    batch = dataset_of(pixels)
    image, _ = LiveTeacher(model, texts=False, trunk=True)(batch, slice(None))
    torch.testing.assert_close(image, torch.nn.functional.normalize(model.image_trunk(pixels).detach(), dim=1))


def dataset_of(pixels: Tensor) -> Any:
    """A batch of which only the images matter."""
    from softclip_cli.data.batches import Batch

    rows = torch.arange(len(pixels))
    return Batch(0, pixels, rows[:, None], rows, rows, torch.zeros_like(rows))


# Two processes


def distributed_settings(case: str, corpus: str, student: str, teacher: str) -> TrainSettings:
    return settings(Path(corpus), student, teacher, schedule={"steps": 3}, **CASES[case])


SHARED_CASES = ("distill live", "distill stored", "cwcl live")


def worker(rank: int, world: int, folder: str, corpus: str, student: str, teacher: str) -> None:
    """One process of a group: train every case."""
    with gloo(rank, world, Path(folder)):
        done = Path(folder) / "done by the first"
        with first_ahead(World(rank, world, rank, world)):
            if rank == 0:
                time.sleep(0.5)
                done.touch()
            assert done.exists()
        for case in SHARED_CASES:
            plan = Plan(distributed_settings(case, corpus, student, teacher), Path(folder) / case)
            prepare(plan, World(rank, world, rank, world)).run()


def test_two_processes_train_as_one(corpus, folders, tmp_path):
    """The same losses and the same weights; what one process computes for both is there when the other comes."""
    arguments = [str(tmp_path), str(corpus), folders["student"], folders["teacher"]]
    together(__file__, 2, *arguments)
    for case in SHARED_CASES:
        alone = train(Plan(distributed_settings(case, *arguments[1:]), tmp_path / f"{case} alone"))
        shared = tmp_path / case
        wanted = [line["loss"] for line in runs.Run(alone).training]
        assert [line["loss"] for line in runs.Run(shared).training] == pytest.approx(wanted, rel=1e-5)
        mine, theirs = (open_model(str(run)).net.state_dict() for run in (shared, alone))
        start = open_model(folders["student"]).net.state_dict()
        for key, value in theirs.items():
            moved = (value - start[key]).norm()
            assert (mine[key] - value).norm() <= 1e-2 * moved + 1e-6, key


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
