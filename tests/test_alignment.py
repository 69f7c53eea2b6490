"""Agreement with human ratings: readers, coefficients and soft targets, against definitions written out by hand."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SHARED
from eval_fixtures import lively_model, pictures
from test_objectives_reference import soft_matrices, unit_rows
from typer.testing import CliRunner

from softclip_cli.app import app
from softclip_cli.errors import DataError, UsageError
from softclip_cli.evaluation.alignment import agreement, alignment, auroc, kendall, target_scores
from softclip_cli.evaluation.catalogue import catalogue
from softclip_cli.evaluation.images import BytesImages
from softclip_cli.evaluation.locate_captions import rated_set
from softclip_cli.evaluation.ratings import RatedSet, read_table
from softclip_cli.objectives.assignment import assigned_targets
from softclip_cli.objectives.settings import ObjectiveSettings, resolve

FLICKR8K = SHARED / "data" / "flickr8k"


def concordance(scores: np.ndarray, ratings: np.ndarray) -> tuple[int, int, int, int]:
    """Pairs of observations: concordant, discordant, tied in the score, tied in the rating."""
    found = [0, 0, 0, 0]
    for i, j in itertools.combinations(range(len(scores)), 2):
        product = (scores[i] - scores[j]) * (ratings[i] - ratings[j])
        found[0] += product > 0
        found[1] += product < 0
        found[2] += scores[i] == scores[j]
        found[3] += ratings[i] == ratings[j]
    return found[0], found[1], found[2], found[3]


def test_kendall_is_that_of_the_books_over_single_ratings() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, 25).astype(float)
    ratings = rng.integers(1, 5, (25, 3)).astype(float)
    ratings[3, 1] = ratings[7, 2] = np.nan
    flat = ratings.ravel()
    repeated = np.repeat(scores, 3)[~np.isnan(flat)]
    flat = flat[~np.isnan(flat)]
    concordant, discordant, tied_scores, tied_ratings = concordance(repeated, flat)
    count = len(flat) * (len(flat) - 1) / 2
    tau_b = (concordant - discordant) / math.sqrt((count - tied_scores) * (count - tied_ratings))
    steps = min(len(np.unique(repeated)), len(np.unique(flat)))
    tau_c = 2 * (concordant - discordant) / (len(flat) ** 2 * (steps - 1) / steps)
    assert kendall(scores, ratings, "b") == pytest.approx(tau_b, abs=1e-12)
    assert kendall(scores, ratings, "c") == pytest.approx(tau_c, abs=1e-12)


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    scores = np.array([0.1, 0.4, 0.4, 0.8, 0.2])
    described = np.array([False, True, False, True, False])
    wins = [(s > t) + (s == t) / 2 for s in scores[described] for t in scores[~described]]
    assert auroc(scores, described) == pytest.approx(np.mean(wins))
    assert math.isnan(auroc(scores, np.zeros(5, dtype=bool)))


def rated(pairs: list[tuple[int, int]], author: list[int], count: int, ratings: np.ndarray | None = None) -> RatedSet:
    numbers = np.arange(len(pairs), dtype=float)[:, None] if ratings is None else ratings
    image, text = np.array(pairs).T
    texts = [f"text {n}" for n in range(len(author))]
    return RatedSet(
        "made", "all", BytesImages(pictures(count)), texts, image, text, numbers, np.array(author), numbers.max()
    )


@pytest.mark.parametrize("name", ["psd", "ema-kd", "otter", "albef"])
def test_assigned_targets_are_those_of_the_objective(name: str) -> None:
    choice = resolve(ObjectiveSettings(name=name))
    image, text, scale = unit_rows(7, 5, 0), unit_rows(7, 5, 1), torch.tensor(9.0, dtype=torch.float64)
    fixed = choice.teacher_scale_fixed
    factor = torch.full_like(scale, fixed) if fixed else scale * choice.teacher_scale
    expected = soft_matrices(choice, image, text, image, text, factor)
    for found, wanted in zip(assigned_targets(choice, image, text, scale), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["clip", "label-smoothing", "siglip", "cwcl"])
def test_objectives_that_make_no_targets_of_scores_are_refused(name: str) -> None:
    settings = ObjectiveSettings(name=name, **({"teacher_model": "x"} if name == "cwcl" else {}))
    with pytest.raises(UsageError, match=f"objective {name} assigns no soft targets"):
        assigned_targets(resolve(settings), unit_rows(3, 4, 0), unit_rows(3, 4, 1), torch.tensor(1.0))


def test_a_pair_gets_the_share_of_its_image_and_of_its_text() -> None:
    # Image 0 wrote texts 0 and 2, image 1 text 1; image 2 wrote none, and nobody is known for text 3.
    data = rated([(0, 1), (1, 0), (1, 2), (2, 0), (0, 3)], [0, 1, 0, -1], 3)
    images, texts = unit_rows(3, 5, 0).float(), unit_rows(4, 5, 1).float()
    choice = resolve(ObjectiveSettings(name="psd"))
    scale = torch.tensor(3.0)
    found = target_scores(choice, data, images, texts, scale)
    rows = images[[0, 1, 0]].double()
    logits = choice.teacher_scale * 3.0 * rows @ texts[:3].double().T
    to_text, to_image = logits.log_softmax(1), logits.T.log_softmax(1)
    assert found["image_to_text"][:3] == pytest.approx(to_text[[0, 1, 1], [1, 0, 2]].numpy(), rel=1e-5)
    both = torch.logsumexp(to_image[1, [0, 2]], 0)  # image 0 is there twice
    assert found["text_to_image"][:3] == pytest.approx(
        torch.stack([both, to_image[0, 1], to_image[2, 1]]).numpy(), rel=1e-5
    )
    assert np.isnan(found["image_to_text"][3:]).all() and np.isnan(found["text_to_image"][3:]).all()


def test_intervals_resample_images_with_all_their_pairs() -> None:
    rng = np.random.default_rng(1)
    pairs = [(i, t) for i in range(30) for t in range(10)]
    truth = rng.normal(size=300)
    ratings = np.round(truth + rng.normal(size=300))[:, None]
    found = agreement(truth, rated(pairs, [-1] * 10, 30, ratings), np.ones(300, dtype=bool))
    for entry in found.values():
        assert entry["low"] < entry["value"] < entry["high"]
        assert entry["n"] == 30
    perfect = agreement(ratings[:, 0], rated(pairs, [-1] * 10, 30, ratings), np.ones(300, dtype=bool))
    assert perfect["kendall_tau"]["value"] == pytest.approx(1)
    assert perfect["auroc"]["value"] == 1


# Files


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    folder = tmp_path / "flickr8k"
    (folder / "images").mkdir(parents=True)
    names = ["a.jpg", "b.jpg", "c.jpg"]
    for name, data in zip(names, pictures(3), strict=True):
        (folder / "images" / name).write_bytes(data)
    lines = [f"{name}#{k}\tcaption {k} of {name}" for name in names for k in range(2)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    expert = [
        "a.jpg\ta.jpg#0\t4\t4\t4",
        "a.jpg\tb.jpg#1\t1\t2\t1",
        "b.jpg\tc.jpg#0\t3\t4\t4",
        "c.jpg\tb.jpg#1\t1\t1\t1",
    ]
    (folder / "ExpertAnnotations.txt").write_text("\n".join(expert) + "\n")
    crowd = ["a.jpg\ta.jpg#0\t1\t3\t0", "a.jpg\tb.jpg#1\t0\t0\t3", "b.jpg\tc.jpg#0\t0.6666\t2\t1"]
    (folder / "CrowdFlowerAnnotations.txt").write_text("\n".join(crowd) + "\n")
    return tmp_path


def test_expert_ratings_leave_out_the_image_s_own_captions(flickr: Path) -> None:
    data = rated_set("flickr8k-expert", root=flickr)
    read = [
        (data.images.key(i), data.texts[t], list(row))
        for i, t, row in zip(data.image, data.text, data.ratings, strict=True)
    ]
    assert read == [
        ("a.jpg", "caption 1 of b.jpg", [1, 2, 1]),
        ("b.jpg", "caption 0 of c.jpg", [3, 4, 4]),
        ("c.jpg", "caption 1 of b.jpg", [1, 1, 1]),
    ]
    assert [data.images.key(int(i)) for i in data.author] == ["b.jpg", "c.jpg"]
    assert data.described.tolist() == [False, True, False]


def test_crowd_ratings_are_the_share_of_yes(flickr: Path) -> None:
    data = rated_set("flickr8k-cf", root=flickr)
    assert data.ratings.ravel().tolist() == [1, 0, 0.6666]
    assert data.described.tolist() == [True, False, True]


def test_every_catalogue_entry_of_ratings_is_read_above() -> None:
    assert {name for name, entry in catalogue().items() if entry.task == "ratings"} == {
        "flickr8k-expert",
        "flickr8k-cf",
    }


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="no ../shared/data/flickr8k")
def test_flickr8k_has_the_pairs_that_papers_count() -> None:
    expert, crowd = (rated_set(name, root=SHARED / "data") for name in ("flickr8k-expert", "flickr8k-cf"))
    assert expert.ratings.shape == (5664, 3)  # Hessel et al. 2021: 5,822 less 158 pairs of an image and its own caption
    assert crowd.ratings.shape == (47830, 1)


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_of_one_s_own(form: str, flickr: Path) -> None:
    table = pd.DataFrame(
        {
            "image": ["a.jpg", "a.jpg", "b.jpg"],
            "caption": ["x", "y", "x"],
            "caption_image": ["b.jpg", "c.jpg", "b.jpg"],
            "ann": [1, 5, 3],
            "ben": [2.0, 4.0, None],
            "remark": ["", "good", ""],
        }
    )
    path = flickr / f"mine.{form}"
    write = {
        "csv": lambda: table.to_csv(path, index=False),
        "tsv": lambda: table.to_csv(path, index=False, sep="\t"),
        "jsonl": lambda: table.to_json(path, orient="records", lines=True),
        "parquet": lambda: table.to_parquet(path),
    }
    write[form]()
    data = rated_set(str(path), images=flickr / "flickr8k" / "images")
    assert data.notes["raters"] == ["ann", "ben"]
    assert np.array_equal(data.ratings, [[1, 2], [5, 4], [3, np.nan]], equal_nan=True)
    assert [data.images.key(int(i)) for i in data.author] == ["b.jpg", "c.jpg"]
    assert data.describes == 5


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("picture,caption,r\na.jpg,x,1\n", "no column 'image'"),
        ("image,caption,r\na.jpg,x,good\n", "no column of numbers"),
        ("image,caption,r\nz.jpg,x,1\na.jpg,x,2\n", "names 1 of 2 images that are not in"),
        ("image,caption,r\na.jpg,x,1\na.jpg,y,1\n", "fewer than two different ratings"),
        ("image,caption,r\na.jpg,x,1\na.jpg,y,2\nb.jpg,y,\n", "1 pairs have no rating"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(lines: str, message: str, flickr: Path) -> None:
    path = flickr / "mine.csv"
    path.write_text(lines)
    with pytest.raises(DataError, match=message):
        read_table(path, flickr / "flickr8k" / "images")


def test_a_damaged_line_is_named(flickr: Path) -> None:
    path = flickr / "flickr8k" / "ExpertAnnotations.txt"
    path.write_text(path.read_text() + "a.jpg\tb.jpg#9\t1\t1\t1\n")
    with pytest.raises(DataError, match="line 5: expected an image, a caption"):
        rated_set("flickr8k-expert", root=flickr)


def test_ratings_are_no_classes_and_classes_no_ratings(flickr: Path) -> None:
    with pytest.raises(UsageError, match="cifar10 is a classification set"):
        rated_set("cifar10", root=flickr)


# The command


def test_the_document_is_made_of_the_model_s_own_embeddings(flickr: Path) -> None:
    model, data = lively_model(), rated_set("flickr8k-cf", root=flickr)
    document = alignment(model, data)
    from softclip_cli.evaluation.embed import embed_images, embed_texts

    images, texts = embed_images(model, data.images).projected, embed_texts(model, data.texts)
    assert images is not None
    cosine = (images @ texts.T).numpy()[data.image, data.text]
    assert document["metrics"]["kendall_tau"]["value"] == pytest.approx(kendall(cosine, data.ratings, "b"))
    assert document["dataset"]["gallery"] == "3 pairs of 2 images and 3 texts"


def test_the_command_shows_score_and_targets(flickr: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    lively_model().save(folder)
    words = [
        "eval",
        "alignment",
        "--dataset",
        "flickr8k-expert",
        "--data-root",
        str(flickr),
        "--model",
        str(folder),
        "--no-cache",
    ]
    found = CliRunner().invoke(app, [*words, "--objective", "psd", "--set", "objective.teacher_scale=3"])
    assert found.exit_code == 0, found.output
    assert "Kendall τ-c" in found.stdout and "target of psd, image→text" in found.stdout
    assert "cosine, pairs with a target" in found.stdout  # a.jpg has no text of its own in the batch
    document = json.loads(CliRunner().invoke(app, [*words, "--objective", "distill", "--json"]).stdout)
    assert document["details"]["pairs_with_targets"] == 2
    refused = CliRunner().invoke(app, [*words, "--objective", "clip"])
    assert refused.exit_code == 2 and "assigns no soft targets" in refused.stderr
    assert CliRunner().invoke(app, [*words, "--set", "objective.teacher_scale=3"]).exit_code == 2
