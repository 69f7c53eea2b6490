"""Natural shifts and common corruptions, from sets to documents, plots and the command."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from catalogue_folders import write
from eval_fixtures import lively_model, pictures, png, write_class_folders
from PIL import Image
from scipy import special
from typer.testing import CliRunner

from softclip_cli.commands import evaluate
from softclip_cli.commands.robustness import robustness as command
from softclip_cli.data.decode import Preprocess, eval_view
from softclip_cli.errors import DataError, HostError, UsageError
from softclip_cli.evaluation import baselines, corruptions
from softclip_cli.evaluation.catalogue import catalogue
from softclip_cli.evaluation.effective import Line, Point
from softclip_cli.evaluation.embed import embed_images
from softclip_cli.evaluation.images import BytesImages
from softclip_cli.evaluation.locate import classification_set
from softclip_cli.evaluation.names import timm_lines
from softclip_cli.evaluation.sets import ClassificationSet
from softclip_cli.evaluation.shifts import of_classes, open_shifts, robustness, shift_names
from softclip_cli.evaluation.zeroshot import zero_shot
from softclip_cli.reports.robustness_plot import write_plot

app = typer.Typer()
app.command()(evaluate.zeroshot)
app.command()(command)


@pytest.fixture(scope="module")
def model():
    return lively_model()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models that differ in their weights."""
    folders = [tmp_path_factory.mktemp("models") / f"m{seed}" for seed in range(3)]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        lively_model(seed).save(folder)
    return folders


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    """Three classes in two domains, of which the second one lacks a class."""
    write_class_folders(tmp_path / "set", {"cat": 9, "dog": 11, "owl": 10}, split="photo", seed=1)
    write_class_folders(tmp_path / "set", {"cat": 8, "dog": 9, "owl": 12}, split="sketch", seed=2)
    write_class_folders(tmp_path / "few", {"cat": 8, "owl": 12}, seed=3)
    return tmp_path


def call(*words: str | Path, code: int = 0) -> tuple[str, str]:
    found = CliRunner().invoke(app, ["robustness", *(str(word) for word in words)])
    assert found.exit_code == code, found.output + repr(found.exception)
    return found.stdout, found.stderr


# Natural shifts


def test_a_document_has_both_accuracies_and_what_the_line_says(model, domains: Path):
    reference = classification_set(f"{domains / 'set'}:photo")
    shifts = open_shifts(reference, f"{domains / 'set'}:photo", [f"{domains / 'set'}:sketch"])
    line = Line(0.7, -0.3, (Point("a", 0.9, 0.8),), source="drawn")
    (document,) = robustness(model, reference, shifts, line_of=lambda a, b: line)
    before = zero_shot(model, reference)["metrics"]["top1"]["value"]
    after = zero_shot(model, classification_set(f"{domains / 'set'}:sketch"))["metrics"]["top1"]["value"]
    metrics = document["metrics"]
    assert metrics["reference_top1"]["value"] == before and metrics["top1"]["value"] == after
    assert metrics["drop"]["value"] == pytest.approx(before - after)
    expected = after - special.expit(0.7 * special.logit(before) - 0.3)
    assert metrics["effective_robustness"]["value"] == pytest.approx(100 * expected)
    assert metrics["top1"]["interval"] == "Clopper-Pearson 95 %"
    assert document["task"] == "robustness" and document["protocol"]["line"]["through"] == "drawn"
    assert document["details"]["line"]["extrapolated"]


def test_a_set_of_fewer_classes_is_compared_on_these_alone(model, domains: Path):
    reference = classification_set(f"{domains / 'set'}:photo")
    shifts = open_shifts(reference, f"{domains / 'set'}:photo", [str(domains / "few")])
    assert shifts[0].classes == (0, 2) and shifts[0].data.class_names == ("cat", "owl")
    (document,) = robustness(model, reference, shifts)
    # By hand: the photos of the two classes, told apart with these two classes only.
    rows = np.flatnonzero(reference.labels != 1)
    features = embed_images(model, reference.images).projected[torch.from_numpy(rows)]
    texts = model.encode_text(model.tokenize(["a photo of a cat.", "a photo of a owl."])).detach()
    hits = (features @ texts.T).argmax(dim=1).numpy() == reference.labels[rows] // 2
    assert document["metrics"]["reference_top1"]["value"] == pytest.approx(hits.mean())
    assert document["metrics"]["reference_top1"]["n"] == 19 and document["protocol"]["reference"]["classes"] == 2


def test_classes_get_new_numbers_in_the_order_that_is_asked_for():
    labels = np.array([0, 1, 2, 2, 0])
    data = ClassificationSet("x", "test", BytesImages(pictures(5)), labels, ("a", "b", "c"))
    part, rows = of_classes(data, (2, 0))
    assert rows.tolist() == [0, 2, 3, 4] and part.labels.tolist() == [1, 0, 0, 1] and part.class_names == ("c", "a")
    assert part.images[1] == data.images[2]


def test_other_classes_are_refused(domains: Path, tmp_path: Path):
    reference = classification_set(f"{domains / 'set'}:photo")
    write_class_folders(tmp_path / "other", {"cat": 2, "wren": 2})
    with pytest.raises(DataError, match="do not have the same classes") as caught:
        open_shifts(reference, str(domains / "set"), [str(tmp_path / "other")])
    assert "'wren'" in caught.value.why


def test_the_catalogue_knows_the_shifts_of_pacs_and_its_own_sets():
    assert shift_names("pacs") == ["pacs:art_painting", "pacs:cartoon", "pacs:sketch"]
    known = [name for name, entry in catalogue().items() if entry.reference == "imagenet"]
    assert shift_names("imagenet") == known and "imagenet-sketch" in known
    assert set(baselines.shipped()) <= set(known)
    with pytest.raises(UsageError, match="no shifted sets"):
        shift_names("cifar10")


def test_imagenets_shifted_sets_are_judged_on_the_classes_that_they_have(tmp_path: Path):
    write(tmp_path, "imagenet", "class-folders")
    order = timm_lines("imagenet_synsets")
    reference = classification_set("imagenet", root=tmp_path)
    for name, layout in (
        ("imagenet-v2", "class-folders"),
        ("imagenet-r", "class-folders"),
        ("objectnet", "list-files"),
    ):
        write(tmp_path, name, layout)
        (shift,) = open_shifts(reference, "imagenet", [name], root=tmp_path)
        assert shift.data.prompts == reference.prompts
        if name == "objectnet":  # its classes are its own, and ImageNet's are those that its mapping names
            assert shift.data.class_count == 113 and shift.data.class_names[0] != reference.class_names[0]
            mapping = json.loads(
                (tmp_path / "objectnet" / "mappings" / "objectnet_to_imagenet_1k.json").read_text(encoding="utf-8")
            )
            named = {words for value in mapping.values() for words in value.split("; ")}
            lemmas = dict(line.split("\t", 1) for line in timm_lines("imagenet_synset_to_lemma"))
            assert {lemmas[order[index]] for index in shift.classes} == named
        elif name == "imagenet-r":
            folders = sorted(path.name for path in (tmp_path / "imagenet-r").rglob("n*") if path.is_dir())
            assert [order[index] for index in shift.classes] == folders
            assert shift.data.class_names == tuple(reference.class_names[index] for index in shift.classes)
        else:
            assert shift.classes is None and shift.data.class_names == reference.class_names


def test_pacs_by_name_from_its_folders(domains: Path, checkpoints: list[Path], tmp_path: Path):
    kinds = dict.fromkeys(("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"), 2)
    for seed, domain in enumerate(("photo", "art_painting", "cartoon", "sketch")):
        write_class_folders(tmp_path / "data" / "pacs", kinds, split=domain, seed=seed)
    stdout, stderr = call(
        "--dataset", "pacs", "--data-root", tmp_path / "data", "--model", checkpoints[0], "--no-cache"
    )
    assert all(word in stdout for word in ("art_painting", "cartoon", "sketch", "split photo"))
    assert "no effective robustness" in stderr


def test_a_line_through_ones_own_results(domains: Path, checkpoints: list[Path], tmp_path: Path):
    out = tmp_path / "results"
    sets = ("--reference", f"{domains / 'set'}:photo", "--shift", f"{domains / 'set'}:sketch", "--no-cache")
    call(*sets, "--model", checkpoints[0], "--out", out)
    stdout, stderr = call(*sets, "--model", checkpoints[2], "--baseline", out, code=2)
    assert "results of 1 model on set" in stderr and "at least two models" in stderr
    call(*sets, "--model", checkpoints[1], "--out", out)
    stdout, _ = call(*sets, "--model", checkpoints[2], "--baseline", out, "--relative-to", checkpoints[0], "--json")
    (document,) = json.loads(stdout)
    others = [json.loads(path.read_text())["metrics"] for path in out.glob("*.json")]
    x, y = (np.array([one[key]["value"] for one in others]) for key in ("reference_top1", "top1"))
    slope, intercept = np.polyfit(special.logit(x), special.logit(y), 1)
    before, after = (document["metrics"][key]["value"] for key in ("reference_top1", "top1"))
    expected = after - special.expit(slope * special.logit(before) + intercept)
    assert document["metrics"]["effective_robustness"]["value"] == pytest.approx(100 * expected, abs=1e-6)
    first = zero_shot(lively_model(0), classification_set(f"{domains / 'set'}:sketch"))["metrics"]["top1"]["value"]
    assert document["metrics"]["relative_robustness"]["value"] == pytest.approx(100 * (after - first))


def test_a_table_and_a_plot(domains: Path, checkpoints: list[Path], tmp_path: Path):
    table = tmp_path / "table.csv"
    table.write_text("model,reference,shift\nsmall,30,20\nmiddle,50,33\nlarge,70,50\n")
    sets = (
        "--reference",
        f"{domains / 'set'}:photo",
        "--model",
        checkpoints[0],
        "--baseline-table",
        table,
        "--no-cache",
    )
    stdout, stderr = call(*sets, "--shift", f"{domains / 'set'}:sketch", "--plot", tmp_path / "x.png")
    assert "effective robustness" in stdout and "line through standard models: table.csv" in stderr
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "PNG" and min(image.size) > 400
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    two = ("--shift", f"{domains / 'set'}:sketch", "--shift", domains / "few")
    assert "does not say which" in call(*sets, *two, code=2)[1]


def test_a_plot_is_drawn_from_documents_alone_and_checks_its_file(tmp_path: Path):
    def document(name: str, value: float) -> dict:
        entry = {"value": value, "low": value - 0.01, "high": value + 0.01}
        return {
            "task": "robustness",
            "model": {"name": name},
            "dataset": {"name": "drawn", "split": "test"},
            "protocol": {"reference": {"name": "real", "split": "test", "classes": 10}},
            "metrics": {"reference_top1": entry, "top1": entry},
            "details": {},
        }

    # Nothing between 0 and 1 is off the paper, nor is an accuracy of 0 or 1.
    assert write_plot([document("a", 0.01), document("b", 0.999)], tmp_path / "deep" / "x.svg").is_file()
    text = (tmp_path / "deep" / "x.svg").read_text()
    assert "<svg" in text
    with pytest.raises(UsageError, match="suffix"):
        write_plot([document("a", 0.5)], tmp_path / "x.bmp")
    with pytest.raises(UsageError, match="no result"):
        write_plot([{**document("a", 0.5), "task": "zeroshot"}], tmp_path / "x.png")


# Corruptions


def stand_in() -> types.ModuleType:
    """A library of two corruptions with known results, so that everything around the real one is tested without it."""
    module = types.ModuleType("imagecorruptions")

    def corrupt(image: np.ndarray, severity: int, corruption_name: str, seed: int | None = None) -> np.ndarray:
        if corruption_name == "negative":
            return 255 - image if severity > 2 else image
        noise = np.random.normal(scale=20 * severity, size=image.shape)  # noqa: NPY002
        return np.clip(image + noise, 0, 255).astype(np.uint8)

    module.corrupt = corrupt  # type: ignore[attr-defined]
    module.get_corruption_names = lambda group: ["noise_like", "negative"] if group == "all" else ["noise_like"]  # type: ignore[attr-defined]
    return module


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", stand_in())


def clean_set(count: int = 20, size: int = 64) -> ClassificationSet:
    return ClassificationSet("x", "test", BytesImages(pictures(count, size)), np.arange(count) % 2, ("cat", "dog"))


def test_the_mean_over_corruptions_and_severities_is_that_of_images_corrupted_by_hand(model, library):
    data = clean_set()
    document = corruptions.corruption_robustness(model, data, ["negative"], (1, 3), size=64)
    texts = model.encode_text(model.tokenize(["a photo of a cat.", "a photo of a dog."])).detach()

    def accuracy(images: list[bytes]) -> float:
        pixels = torch.from_numpy(np.stack([eval_view(data, model.preprocess) for data in images]))
        with torch.no_grad():
            return float(((model.encode_image(pixels) @ texts.T).argmax(dim=1).numpy() == data.labels).mean())

    clean = accuracy(pictures(20, 64))
    negative = accuracy([png(255 - np.asarray(Image.open(io.BytesIO(image)))) for image in pictures(20, 64)])
    metrics = document["metrics"]
    assert metrics["clean_top1"]["value"] == clean and negative != clean
    assert document["details"]["table"] == {"negative": {"1": clean, "3": negative}}
    assert metrics["top1"]["value"] == metrics["top1_negative"]["value"] == pytest.approx((clean + negative) / 2)
    assert metrics["relative_top1"]["value"] == pytest.approx((clean + negative) / 2 / clean)
    assert metrics["top1"]["low"] <= metrics["top1"]["value"] <= metrics["top1"]["high"]


def test_a_corruption_depends_on_seed_index_and_severity_alone(library):
    pixels = np.full((32, 32, 3), 128, dtype=np.uint8)
    made = corruptions.Corruption("noise_like", 2, seed=5)
    np.random.seed(0)  # noqa: NPY002
    first = made(pixels, 3)
    after = np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    assert np.random.random() == after  # noqa: NPY002 (the caller's generator is left alone)
    assert (made(pixels, 3) == first).all()
    assert (made(pixels, 4) != first).any()
    assert (corruptions.Corruption("noise_like", 2, seed=6)(pixels, 3) != first).any()


def test_a_crop_that_is_not_corrupted_is_the_models_own_view():
    image = png(np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8))
    spec = Preprocess(size=64)
    cropped = corruptions.Cropped(BytesImages([image]), spec)
    assert (eval_view(cropped[0], spec) == eval_view(image, spec)).all()


def test_small_images_are_refused_with_the_reason():
    with pytest.raises(DataError, match="32 pixels is too small for corruptions at 224") as caught:
        corruptions.check_sizes(clean_set(size=32), 224)
    assert "--corruption-size 32" in caught.value.hint
    corruptions.check_sizes(clean_set(size=32), 32)


def test_names_groups_and_severities(library):
    assert corruptions.choose_corruptions(["negative", "common"]) == ["noise_like", "negative"]
    with pytest.raises(UsageError, match="no corruption named 'negativ'") as caught:
        corruptions.choose_corruptions(["negativ"])
    assert "negative" in caught.value.hint
    assert corruptions.check_severities([5, 1, 1]) == (1, 5)
    with pytest.raises(UsageError, match="severity 6"):
        corruptions.check_severities([6])


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(HostError, match="imagecorruptions") as caught:
        corruptions.library()
    assert "softclip[corruptions]" in caught.value.hint or "imagecorruptions-imaug" in caught.value.hint


def test_the_command_shows_a_table_of_corruptions(library, checkpoints: list[Path], tmp_path: Path):
    for kind in ("cat", "dog"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for number, image in enumerate(pictures(4, 64, seed=len(kind))):
            (tmp_path / "set" / kind / f"{number}.png").write_bytes(image)
    words = ("--dataset", tmp_path / "set", "--corruption", "all", "--severity", "1,3", "--corruption-size", "64")
    stdout, stderr = call(*words, "--model", checkpoints[0], "--no-cache")
    assert "negative" in stdout and "severity 3" in stdout and "of clean" in stdout
    assert "a crop of 64 pixels" in stderr
    assert "does not go with" in call(*words, "--model", checkpoints[0], "--shift", "x", code=2)[1]


def test_the_real_library_is_deterministic_and_keeps_the_size():
    real = pytest.importorskip("imagecorruptions", exc_type=ImportError)
    names = corruptions.choose_corruptions(["all"])
    assert len(names) == 19 and corruptions.choose_corruptions(["common"]) == real.get_corruption_names("common")
    pixels = eval_view(pictures(1, 64)[0], Preprocess(size=64))
    for name in names:
        if name == "glass_blur":
            continue  # compiled when first used, for seconds; impulse_noise takes a seed in the same way
        made = corruptions.Corruption(name, 3)
        first = made(pixels, 0)
        assert first.shape == pixels.shape and first.dtype == np.uint8, name
        assert (made(pixels, 0) == first).all() and (first != pixels).any(), name
    moved = corruptions.Corruption("gaussian_noise", 3)(np.full((224, 224, 3), 128, dtype=np.uint8), 0)
    # Severity 3 of ImageNet-C's Gaussian noise has a standard deviation of 0.18 of the range.
    assert (moved / 255).std() == pytest.approx(0.18, rel=0.05)
