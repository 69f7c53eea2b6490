"""SugarCrepe and Winoground from tiny folders in their own layouts, scored as by hand; missing data is explained."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import typer
from eval_fixtures import lively_model, pictures
from typer.testing import CliRunner

from softclip_cli.commands import evaluate
from softclip_cli.commands.composition import composition as command
from softclip_cli.data.decode import eval_view
from softclip_cli.errors import DataError
from softclip_cli.evaluation.composition import composition
from softclip_cli.evaluation.intervals import bootstrap_class_mean, wilson
from softclip_cli.evaluation.layout_composition import EDITS
from softclip_cli.evaluation.locate_captions import composition_set
from softclip_cli.evaluation.pairs import CHANCE, pair_wins, paired_composition
from softclip_cli.evaluation.sets import CompositionSet, PairedSet

app = typer.Typer()
app.command()(evaluate.zeroshot)
app.command()(command)
WORDS = ("red", "blue", "cat", "dog", "ball", "tree", "house", "left", "big", "small")


@pytest.fixture(scope="module")
def model():
    return lively_model()


def sentences(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 4)) for _ in range(count)]


def write_sugarcrepe(root: Path) -> dict[str, list[tuple[str, str, str]]]:
    """All seven files over five images that they share."""
    images = root / "val2017"
    images.mkdir(parents=True)
    for number, image in enumerate(pictures(5)):
        (images / f"{number:012d}.jpg").write_bytes(image)
    rows = {}
    for seed, edit in enumerate(EDITS):
        names = [f"{number % 5:012d}.jpg" for number in range(3 + seed)]
        both = zip(names, sentences(len(names), seed), sentences(len(names), 100 + seed), strict=True)
        rows[edit] = list(both)
        keys = ("filename", "caption", "negative_caption")
        # The numbers are not contiguous in the release.
        entries = {str(2 * number): dict(zip(keys, row, strict=True)) for number, row in enumerate(rows[edit])}
        (root / f"{edit}.json").write_text(json.dumps(entries))
    return rows


def embed(model, images: list[bytes], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """In float64, one text at a time."""
    pixels = torch.from_numpy(np.stack([eval_view(data, model.preprocess) for data in images]))
    with torch.no_grad():
        found = model.encode_image(pixels).double().numpy()
        words = np.concatenate([model.encode_text(model.tokenize([text])).double().numpy() for text in texts])
    return found, words


def test_sugarcrepe_by_kind_of_edit_is_that_by_hand(model, tmp_path: Path):
    rows = write_sugarcrepe(tmp_path / "sugarcrepe")
    data = composition_set("sugarcrepe", root=tmp_path)
    assert isinstance(data, CompositionSet) and data.layout == "sugarcrepe" and data.split == "all"
    document = composition(model, data)
    shares, totals = [], []
    for edit in EDITS:
        wins = []
        for name, true, false in rows[edit]:
            image, texts = embed(model, [pictures(5)[int(name[:12])]], [true, false])
            first, second = texts @ image[0]
            wins.append(first > second)
        found = document["metrics"][f"accuracy_{edit}"]
        assert found["value"] == pytest.approx(np.mean(wins)) and found["n"] == len(wins)
        assert (found["low"], found["high"]) == wilson(sum(wins), len(wins))
        shares.append(np.mean(wins))
        totals.append(len(wins))
    metrics = document["metrics"]
    assert metrics["accuracy"]["value"] == pytest.approx(np.average(shares, weights=totals))
    assert metrics["mean_per_edit"]["value"] == pytest.approx(np.mean(shares))
    hits = np.round(np.array(shares) * totals).astype(int)
    assert (metrics["mean_per_edit"]["low"], metrics["mean_per_edit"]["high"]) == bootstrap_class_mean(
        hits, np.array(totals)
    )
    assert document["details"]["chance"] == 0.5 and document["dataset"]["size"] == sum(totals)


def test_an_image_that_is_there_several_times_is_embedded_once(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_sugarcrepe(tmp_path / "sugarcrepe")
    counts = []
    monkeypatch.setattr(
        model, "image_trunk", lambda pixels, real=model.image_trunk: counts.append(len(pixels)) or real(pixels)
    )
    document = composition(model, composition_set("sugarcrepe", root=tmp_path))
    assert sum(counts) == 5 and document["dataset"]["size"] > 5


def test_one_kind_of_edit_and_a_folder_of_ones_own(tmp_path: Path):
    rows = write_sugarcrepe(tmp_path / "mine")
    (tmp_path / "mine" / "add_att.json").unlink()
    one = composition_set(str(tmp_path / "mine"), split="swap_att")
    assert set(one.edits) == {"swap_att"} and one.captions == [true for _, true, _ in rows["swap_att"]]
    with pytest.raises(DataError, match="has no split 'all'"):
        composition_set(str(tmp_path / "mine"), split="all")


def test_an_equal_score_is_no_win(model):
    texts = ["a red cat"] * 3
    data = CompositionSet("x", "test", pictures(3), texts, [[text] for text in texts], ["none"] * 3)
    assert composition(model, data)["metrics"]["accuracy"]["value"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "val2017" / "000000000003.jpg").unlink(), "does not match the images"),
        (lambda root: (root / "swap_obj.json").write_text('{"0": {"filename": "x"}}'), "not one of SugarCrepe's files"),
        (lambda root: (root / "swap_obj.json").write_text("{"), "not one of SugarCrepe's files"),
    ],
)
def test_a_damaged_copy_of_sugarcrepe_is_named(change, words: str, tmp_path: Path):
    write_sugarcrepe(tmp_path / "sugarcrepe")
    change(tmp_path / "sugarcrepe")
    with pytest.raises(DataError, match=words):
        composition_set("sugarcrepe", root=tmp_path)


# Winoground


def write_winoground(root: Path, count: int) -> tuple[list[bytes], list[str]]:
    """The release's files, images without a suffix in the list."""
    images, texts = pictures(2 * count, seed=5), sentences(2 * count, seed=6)
    (root / "data" / "images").mkdir(parents=True)
    lines = []
    for number in range(count):
        names = [f"ex_{number}_img_{side}" for side in range(2)]
        for side, name in enumerate(names):
            (root / "data" / "images" / f"{name}.png").write_bytes(images[2 * number + side])
        entry = {"id": number, "image_0": names[0], "image_1": names[1], "caption_0": texts[2 * number]}
        entry |= {"caption_1": texts[2 * number + 1], "collapsed_tag": "Object" if number % 3 else "Relation"}
        lines.append(json.dumps(entry))
    (root / "data" / "examples.jsonl").write_text("\n".join(lines) + "\n")
    return images, texts


def test_winoground_is_scored_as_by_hand(model, tmp_path: Path):
    images, texts = write_winoground(tmp_path / "mine", 12)
    data = composition_set(str(tmp_path / "mine"))
    assert isinstance(data, PairedSet) and data.captions == texts
    document = paired_composition(model, data)
    pixels, words = embed(model, images, texts)
    text, image = [], []
    for number in range(12):
        (i0, i1), (c0, c1) = pixels[2 * number : 2 * number + 2], words[2 * number : 2 * number + 2]
        text.append(c0 @ i0 > c1 @ i0 and c1 @ i1 > c0 @ i1)
        image.append(c0 @ i0 > c0 @ i1 and c1 @ i1 > c1 @ i0)
    group = np.array(text) & np.array(image)
    metrics = document["metrics"]
    assert metrics["text_score"]["value"] == pytest.approx(np.mean(text))
    assert metrics["image_score"]["value"] == pytest.approx(np.mean(image))
    assert metrics["group_score"]["value"] == pytest.approx(np.mean(group))
    of_relation = [won for number, won in enumerate(text) if number % 3 == 0]
    assert metrics["text_score_Relation"]["value"] == pytest.approx(np.mean(of_relation))
    assert document["details"]["tags"] == {"Object": 8, "Relation": 4}


def test_chance_is_what_all_orders_of_four_scores_give():
    orders = np.array(list(itertools.permutations(range(4)))).reshape(-1, 2, 2)
    for name, won in pair_wins(orders).items():
        assert won.mean() == pytest.approx(CHANCE[name]), name
    assert not any(won.any() for won in pair_wins(np.ones((3, 2, 2))).values())


def test_winoground_from_parquet_is_the_same(tmp_path: Path):
    images, texts = write_winoground(tmp_path / "files", 4)
    columns = {f"image_{side}": [{"bytes": data, "path": None} for data in images[side::2]] for side in range(2)}
    features = {name: datasets.Image() for name in columns}
    columns |= {f"caption_{side}": texts[side::2] for side in range(2)}
    features |= {f"caption_{side}": datasets.Value("string") for side in range(2)}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    (tmp_path / "table").mkdir()
    table.to_parquet(tmp_path / "table" / "test-00000-of-00001.parquet")
    one, other = composition_set(str(tmp_path / "files")), composition_set(str(tmp_path / "table"))
    assert one.captions == other.captions
    assert [one.images[i] for i in range(8)] == [other.images[i] for i in range(8)]
    assert other.layout == "hub-parquet" and other.tags == [""] * 4


def test_an_incomplete_winoground_is_named(tmp_path: Path):
    write_winoground(tmp_path / "winoground", 4)
    with pytest.raises(DataError, match="4 pairs where it has 400"):
        composition_set("winoground", root=tmp_path)
    (tmp_path / "winoground" / "data" / "images" / "ex_2_img_1.png").unlink()
    with pytest.raises(DataError, match="does not match the images"):
        composition_set(str(tmp_path / "winoground"))


# The command


def call(*words: str | Path, code: int = 0) -> tuple[str, str]:
    found = CliRunner().invoke(app, ["composition", *(str(word) for word in words)])
    assert found.exit_code == code, found.output + repr(found.exception)
    return found.stdout, found.stderr


@pytest.mark.parametrize(("name", "address"), [("sugarcrepe", "sugar-crepe"), ("winoground", "facebook/winoground")])
def test_missing_data_exits_with_3_the_address_and_the_layout(name: str, address: str, tmp_path: Path):
    _, stderr = call("--dataset", name, "--data-root", tmp_path, code=3)
    assert f"dataset {name} is not on this machine" in stderr and address in stderr and "Accepted layouts" in stderr


def test_the_command_shows_edits_pairs_and_chance(tmp_path: Path):
    lively_model().save(tmp_path)
    write_sugarcrepe(tmp_path / "sugarcrepe")
    stdout, stderr = call("--dataset", "sugarcrepe", "--data-root", tmp_path, "--model", tmp_path, "--no-cache")
    assert "replace_rel" in stdout and "mean over edits" in stdout and "50.00 %" in stdout
    assert "a tie is a miss" in stderr
    write_winoground(tmp_path / "pairs", 6)
    stdout, _ = call("--dataset", tmp_path / "pairs", "--model", tmp_path, "--no-cache")
    assert "group score" in stdout and "16.67 %" in stdout and "Relation" in stdout
