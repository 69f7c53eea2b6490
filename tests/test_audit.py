"""The audit: evidence against brute force, odds against the truth, missed positives, the cleaned corpus, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import COLOURS, encoded
from sklearn.metrics import roc_auc_score
from test_training import settings
from torch.nn.functional import normalize
from typer.testing import CliRunner

from softclip_cli.app import app
from softclip_cli.audit.audit import AuditOptions, head_settings, judged
from softclip_cli.audit.evidence import Competition, Neighbours, Siblings, made_mismatches, pairs_of
from softclip_cli.audit.missed import Fits
from softclip_cli.audit.odds import mismatch_odds, revised
from softclip_cli.audit.planted import planted_evidence, planted_parts
from softclip_cli.data.corpus import Corpus, CorpusWriter, Record
from softclip_cli.data.mismatch import exchange_captions
from softclip_cli.data.rewrite import without_captions
from softclip_cli.errors import DataError
from softclip_cli.training.features import FeatureStore
from softclip_cli.training.projections import projection_state
from softclip_cli.training.start import Plan, train
from softclip_cli.training.student import build_model


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


OWNER = np.repeat(np.arange(8), [3, 1, 2, 4, 2, 2, 3, 3])
RANDOM = made_mismatches(OWNER, 2, np.random.default_rng(0))
OWN = pairs_of(OWNER)


def test_made_mismatches_are_of_two_images_and_stand_in_every_place():
    assert (OWNER[RANDOM.caption] != RANDOM.image).all()
    assert (OWNER[RANDOM.place] == RANDOM.image).all()
    assert sorted(RANDOM.place) == sorted([*range(20), *range(20)])


def test_competition_is_the_log_softmax():
    image, text, scale = vectors(8, 5), vectors(20, 5, seed=1), 7.0
    found = Competition(8, 20)(image, text, scale, OWN, RANDOM)
    logits = scale * (image.double() @ text.double().T).numpy()
    for pairs, values in zip((OWN, RANDOM), found, strict=True):
        for place, (i, t) in enumerate(zip(pairs.image, pairs.caption, strict=True)):
            assert values["cosine"][place] == pytest.approx(logits[i, t] / scale, abs=1e-5)
            assert values["image_to_text"][place] == pytest.approx(
                logits[i, t] - np.log(np.exp(logits[i]).sum()), abs=1e-4
            )
            assert values["text_to_image"][place] == pytest.approx(
                logits[i, t] - np.log(np.exp(logits[:, t]).sum()), abs=1e-4
            )


def test_siblings_leave_out_the_caption_in_whose_place_a_pair_stands():
    text, trust = vectors(20, 6, seed=2), np.random.default_rng(1).random(20)
    table = (text @ text.T).numpy()
    for pairs in (OWN, RANDOM):
        found = Siblings(text * 3, OWNER, trust)(pairs)
        for place, (i, t, stands) in enumerate(zip(pairs.image, pairs.caption, pairs.place, strict=True)):
            others = [j for j in np.flatnonzero(i == OWNER) if j != stands]
            if not others:
                assert np.isnan(found[place])
                continue
            expected = sum(trust[j] * table[t, j] for j in others) / (sum(trust[j] for j in others) + 0.05)
            assert found[place] == pytest.approx(expected, abs=1e-5)


def test_neighbours_never_testify_for_themselves():
    """A caption's own place, and an image's own captions, are no neighbours; the rest is a weighted mean."""
    image, text = torch.randn(8, 6), torch.randn(20, 5)
    v, t = normalize(image - image.mean(0), dim=1).double(), normalize(text - text.mean(0), dim=1).double()
    for pairs in (OWN, RANDOM):
        found = Neighbours(image, text, OWNER)(pairs)
        for place, (i, c) in enumerate(zip(pairs.image, pairs.caption, strict=True)):
            total = weight = 0.0
            for j in range(8):
                theirs = [k for k in np.flatnonzero(j == OWNER) if k != c]
                if j != i and theirs:
                    w = float(torch.exp(10 * v[i] @ v[j]))
                    total, weight = total + w * float((t[theirs] @ t[c]).mean()), weight + w
            assert found["image_neighbours"][place] == pytest.approx(total / weight, abs=1e-4)
            others = [k for k in range(20) if k != c and OWNER[k] != i]
            w = torch.exp(10 * t[others] @ t[c])
            expected = float((w * (v[OWNER[others]] @ v[i])).sum() / w.sum())
            assert found["caption_neighbours"][place] == pytest.approx(expected, abs=1e-4)


def test_odds_order_pairs_as_the_true_likelihood_ratio_and_know_the_share():
    rng = np.random.default_rng(3)
    count, share = 6000, 0.25
    wrong = rng.random(count) < share
    # The second kind of evidence is worth something only together with the first, and one value in ten is missing.
    own = rng.normal(0, 1, (count, 2)) + np.where(wrong[:, None], 0, (2.5, 1.5))
    made = rng.normal(0, 1, (3000, 2))
    ideal = own @ np.array([2.5, 1.5])
    own[rng.random(count) < 0.1, 1] = np.nan
    made[rng.random(3000) < 0.1, 1] = np.nan
    odds = mismatch_odds(own, made, rng.integers(0, 900, count), rng.integers(0, 900, 3000))
    assert roc_auc_score(~wrong, odds.ratio) > roc_auc_score(~wrong, ideal) - 0.015
    assert odds.share == pytest.approx(share, abs=0.04)
    sure = odds.mismatched > 0.5
    assert wrong[sure].mean() == pytest.approx(odds.mismatched[sure].mean(), abs=0.05)  # it is a probability
    assert odds.mismatched.mean() == pytest.approx(share, abs=0.04)


def test_what_a_run_kept_is_weighed_with_the_rest():
    rng = np.random.default_rng(5)
    wrong = rng.random(4000) < 0.2
    own, made = rng.normal(0, 1, (4000, 1)) + 2 * ~wrong[:, None], rng.normal(0, 1, (2000, 1))
    kept = rng.normal(0, 0.5, 4000) + 1.0 * ~wrong
    odds = mismatch_odds(own, made, np.arange(4000), np.arange(2000))
    both = revised(odds, np.where(np.arange(4000) % 10 == 0, np.nan, kept))
    ideal = roc_auc_score(~wrong, 2 * own[:, 0] + 4 * kept)
    known = np.arange(4000) % 10 != 0
    assert roc_auc_score(~wrong[known], both.ratio[known]) == pytest.approx(ideal, abs=0.01)
    assert roc_auc_score(~wrong, odds.ratio) < ideal - 0.03
    assert (both.ratio[~known] == odds.ratio[~known]).all()
    assert both.mismatched.mean() == pytest.approx(0.2, abs=0.04)
    against = revised(odds, -kept)  # a score that is high for mismatches is none of this kind
    assert (against.ratio == odds.ratio).all()


def test_a_corpus_without_mismatches_has_none():
    rng = np.random.default_rng(4)
    own, made = rng.normal(5, 1, (3000, 1)), rng.normal(0, 1, (3000, 1))
    assert mismatch_odds(own, made, np.arange(3000), np.arange(3000)).share < 0.01


def test_planted_parts_do_not_overlap_and_pair_other_images():
    owner = np.repeat(np.arange(50), 4)
    parts = planted_parts(owner, 3, np.random.default_rng(0))
    assert [len(part) for part in parts] == [20, 20, 20]
    assert len(np.unique(np.concatenate(parts))) == 60
    assert all((owner[part] != owner[np.roll(part, -1)]).all() for part in parts)


def test_exchanged_captions_are_found_from_features_alone():
    """Two views of the same hidden thing; a fifth of the captions are exchanged, and nobody says which."""
    rng = torch.Generator().manual_seed(0)
    options = AuditOptions(epochs=6, batch_size=64)
    chosen = head_settings("tiny", options)
    model = build_model(chosen, torch.device("cpu"))
    side = model.preprocess.size
    widths = [
        model.image_trunk(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape[1],
        model.text_trunk(model.tokenize(["a"])).shape[1],
    ]
    hidden = torch.randn(500, 12, generator=rng)
    image = hidden @ torch.randn(12, widths[0], generator=rng) + torch.randn(500, widths[0], generator=rng)
    text = hidden.repeat_interleave(2, 0) @ torch.randn(12, widths[1], generator=rng)
    text += torch.randn(1000, widths[1], generator=rng)
    exchange = exchange_captions(np.full(500, 2), 0.2, 0)
    store = FeatureStore(
        image, text[torch.from_numpy(exchange.source)], torch.arange(0, 1001, 2), torch.arange(500), False
    )
    planted = planted_evidence(model, projection_state(model), store, chosen)
    assert all(len(values) == 1000 for values in planted.own.values())
    own = pairs_of(np.repeat(np.arange(500), 2))
    odds = judged(dict(planted.own), dict(planted.made_evidence), own, planted.made, store)
    assert roc_auc_score(~exchange.mismatched, odds.ratio) > 0.97
    assert odds.share == pytest.approx(0.2, abs=0.06)


@pytest.fixture
def fits() -> Fits:
    return Fits(vectors(8, 5), vectors(20, 5, seed=1), 7.0, OWNER)


def test_missed_positives_are_the_strongest_of_other_groups(fits):
    texts = [f"caption {number}" for number in range(20)]
    texts[7] = "Caption  0!"  # says what image 0's first caption says
    group = np.array([0, 1, 2, 3, 4, 5, 6, 1])
    said = vectors(20, 9, seed=3)
    found = fits.missed(group, texts, said, 6, -np.inf)
    logits = 7 * (fits.image.double() @ fits.text.double().T).numpy()
    scores = logits - np.log(np.exp(logits).sum(1, keepdims=True)) / 2 - np.log(np.exp(logits).sum(0)) / 2
    expected, seen = [], set()
    for i, t in sorted(np.ndindex(8, 20), key=lambda pair: -scores[pair]):
        j = OWNER[t]
        if (
            group[i] == group[j]
            or frozenset((i, j)) in seen
            or (i == 0 and t == 7)
            or (j == 0 and t == 0 and i == OWNER[7])
        ):
            continue
        seen.add(frozenset((i, j)))
        expected.append((i, t))
    assert list(zip(found.image, found.caption, strict=True)) == expected[:6]
    np.testing.assert_allclose(found.score, [scores[pair] for pair in expected[:6]], atol=1e-4)
    own = fits.own()
    np.testing.assert_allclose(own, [scores[i, t] for t, i in enumerate(OWNER)], atol=1e-4)
    best = [max((t for t in range(20) if OWNER[t] != i), key=lambda t: scores[i, t]) for i in (2, 5)]
    assert list(fits.preferred(np.array([2, 5]))) == best


def test_captions_that_say_the_same_are_no_missed_positives(fits):
    said = vectors(20, 9, seed=3)
    everything = fits.missed(np.arange(8), [str(n) for n in range(20)], said, 100, -np.inf)
    one, caption = int(everything.image[0]), int(everything.caption[0])
    said[caption] = normalize(said[np.flatnonzero(one == OWNER)[0]] + 0.1 * vectors(9, seed=8), dim=0)
    fewer = fits.missed(np.arange(8), [str(n) for n in range(20)], said, 100, -np.inf)
    assert (one, caption) not in set(zip(fewer.image.tolist(), fewer.caption.tolist(), strict=True))
    assert len(fits.missed(np.arange(8), [str(n) for n in range(20)], said, 100, float(everything.score[4])).image) <= 5


def test_a_cleaned_corpus_is_the_corpus_without_those_captions(colour_corpus, tmp_path):
    corpus = Corpus.open(colour_corpus)
    unwanted = np.zeros(192, bool)
    unwanted[[0, 5, 6, 7]] = True  # one of image 0, one of image 2, both of image 3
    cleaned = without_captions(corpus, tmp_path / "clean", "train", unwanted, np.full(192, 0.9), {"share": 0.02})
    before, after = corpus.split("train"), cleaned.split("train")
    assert after["key"][:] == [key for key in before["key"] if key != "train-3"]
    assert after[0]["captions"] == before[0]["captions"][1:]
    assert after[1] == before[1]
    assert after[2]["captions"] == before[2]["captions"][:1]
    for name in ("train", "val"):
        assert cleaned.info["splits"][name] == {
            "rows": len(cleaned.split(name)),
            **({"captions": 188} if name == "train" else {"captions": 48}),
        }
    files = [sorted((path / "val").glob("*.arrow")) for path in (colour_corpus, tmp_path / "clean")]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert cleaned.fingerprint != corpus.fingerprint
    assert cleaned.info["audit"] == {
        "share": 0.02,
        "of": corpus.fingerprint,
        "captions_dropped": 4,
        "images_dropped": 1,
    }
    log = pq.read_table(tmp_path / "clean" / "dropped.parquet").to_pylist()
    assert [(row["key"], row["reason"]) for row in log] == [
        ("train-0", "mismatched-caption"),
        ("train-2", "mismatched-caption"),
        ("train-3", "mismatched-caption"),
        ("train-3", "mismatched-caption"),
        ("train-3", "mismatched-captions"),
    ]
    assert log[0]["detail"] == "probability 0.900: a red picture"
    assert cleaned.info["dropped"]["captions"] == {"mismatched-caption": 4}
    assert cleaned.info["dropped"]["left_out"] == {"mismatched-captions": 1}
    assert not list((tmp_path / "clean").glob("*.arrow"))
    train(Plan(settings(tmp_path / "clean", schedule={"steps": 1}), tmp_path / "run"))  # it is a corpus
    with pytest.raises(DataError, match="is the corpus that is read"):
        without_captions(corpus, colour_corpus, "train", unwanted, np.zeros(192), {})
    with pytest.raises(DataError, match="no image of split"):
        without_captions(corpus, tmp_path / "none", "train", np.ones(192, bool), np.zeros(192), {})
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def noisy_corpus(tmp_path_factory) -> tuple[Path, set[tuple[str, int]]]:
    """160 pictures of four colours, a tenth of whose captions name another colour."""
    path, wrong = tmp_path_factory.mktemp("noisy") / "colours", set()
    rng = np.random.default_rng(0)
    with CorpusWriter(path) as writer, writer.split("train") as part:
        for i in range(160):
            names, captions = list(COLOURS), []
            for number, form in enumerate(("a {} picture", "something {}")):
                shown = names[i % 4]
                if rng.random() < 0.1:
                    shown = names[(i + rng.integers(1, 4)) % 4]
                    wrong.add((f"k{i}", number))
                captions.append(form.format(shown))
            part.write(Record(f"k{i}", encoded(COLOURS[names[i % 4]], seed=i), captions))
    return path, wrong


def test_the_command_finds_wrong_captions_and_writes_all(noisy_corpus, tmp_path, monkeypatch):
    """A run audits what it was trained on: tables, gallery, records of the training, and a cleaned corpus."""
    corpus, wrong = noisy_corpus
    monkeypatch.chdir(tmp_path)
    made = settings(corpus, schedule={"steps": 50}, log={"alignments": True, "every": 10}, eval={"every": 50})
    run = train(Plan(made, tmp_path / "run"))
    arguments = ["audit", str(corpus), "--model", str(run), "--top", "12", "--drop", "0.1", "--to", "clean", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--workers", "0"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["training_records"]
    out = tmp_path / "audit-colours"
    assert json.loads((out / "audit.json").read_text())["corpus"]["captions"] == 320
    pairs = pq.read_table(out / "pairs.parquet").to_pylist()
    assert [row["rank"] for row in pairs] == list(range(1, 321))
    assert {"mismatched", "cosine", "siblings", "seen_image_to_text", "seen"} <= set(pairs[0])
    truth = [(row["key"], row["caption_number"]) in wrong for row in pairs]
    assert roc_auc_score(truth, [-row["rank"] for row in pairs]) > 0.9
    assert document["cleaned"]["captions_dropped"] == 32
    cleaned = Corpus.open(tmp_path / "clean")
    assert cleaned.info["audit"]["model"]["fingerprint"] == document["model"]["fingerprint"]
    assert sum(len(row) for row in cleaned.split("train")["captions"]) == 320 - 32
    page = (out / "gallery.html").read_text()
    assert page.count('<article class="suspect">') == 12
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page

    # Once more, in the same place: an audit replaces an audit, nothing else.
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    refused = CliRunner().invoke(app, ["audit", str(corpus), "--model", str(run), "--out", str(other)])
    assert refused.exit_code == 3 and "is not an audit" in refused.output


@pytest.mark.parametrize("altered", [{}, {"share": 0.9}, {"mismatched": 0.2}], ids=str)
def test_a_run_of_other_data_leaves_its_records_out(noisy_corpus, colour_corpus, tmp_path, monkeypatch, altered):
    """Of another corpus, or of this one changed on purpose: rows or captions have other numbers then."""
    monkeypatch.chdir(tmp_path)
    trained_on = noisy_corpus[0] if altered else colour_corpus
    made = settings(trained_on, schedule={"steps": 2}, log={"alignments": True}, eval={"every": 2})
    made = made.model_copy(update={"data": made.data.model_copy(update=altered)})
    run = train(Plan(made, tmp_path / "run"))
    result = CliRunner().invoke(
        app, ["audit", str(noisy_corpus[0]), "--model", str(run), "--top", "2", "--workers", "0"]
    )
    assert result.exit_code == 0, result.output
    assert "was trained on other data" in " ".join(result.output.split())
    (pairs,) = tmp_path.glob("audit-*/pairs.parquet")
    assert "seen" not in pq.read_schema(pairs).names


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--model", "tiny"], 2, "untrained"),
        (["--model", "tiny", "--split", "tran"], 3, "no split"),
        (["--model", "tiny", "--drop", "0.1"], 2, "go together"),
        (["--model", "tiny", "--drop", "1.5", "--to", "x"], 2, "is no share"),
        ([], 4, "no model was named"),
    ],
)
def test_what_cannot_be_audited_is_said(noisy_corpus, arguments, code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["audit", str(noisy_corpus[0]), *arguments])
    assert result.exit_code == code, result.output
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "audit-colours").exists()
