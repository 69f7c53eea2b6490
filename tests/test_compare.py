"""`softclip compare`: outcomes give back the metrics, intervals agree with references, verdicts and gates say what they should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import make_run
from scipy import stats
from typer.testing import CliRunner

from softclip_cli.app import app
from softclip_cli.errors import CheckFailed, DataError, UsageError
from softclip_cli.evaluation import outcomes, paired
from softclip_cli.evaluation.intervals import share_metric, wilson
from softclip_cli.evaluation.item_metrics import Items, averaged, item_metrics
from softclip_cli.evaluation.ranks import Ranks
from softclip_cli.evaluation.retrieval import metrics_of
from softclip_cli.evaluation.zeroshot import classification_metrics
from softclip_cli.reports.comparison import Comparison, compare
from softclip_cli.reports.comparison_table import remarks
from softclip_cli.reports.gates import judge, parse_gate, require_passed
from softclip_cli.reports.subjects import Member, Subject, open_subjects

CLASSES, IMAGES = 8, 400
LABELS = np.arange(IMAGES) % CLASSES
runner = CliRunner()


def classified(skill: float, seed: int, *, size: int = IMAGES) -> np.ndarray:
    """Five best classes a picture; pictures are as hard for every model, so that errors go together."""
    hard = np.random.default_rng(0).random(size)
    rng = np.random.default_rng(seed + 1)
    best = np.stack([rng.permutation(CLASSES)[:5] for _ in range(size)])
    right = hard + rng.normal(0, 0.05, size) < skill
    best[:, 0] = np.where(right, LABELS[:size], (LABELS[:size] + 1 + rng.integers(0, CLASSES - 1, size)) % CLASSES)
    return best


def zeroshot(skill: float, seed: int = 0, *, items: bool = True, **changed: Any) -> dict[str, Any]:
    best = classified(skill, seed)
    made: dict[str, Any] = {
        "format": 1,
        "task": "zeroshot",
        "dataset": {"name": "drawn", "split": "test", "size": IMAGES, "fingerprint": "f" * 64},
        "protocol": {"precision": "fp32"},
        "metrics": classification_metrics(best, LABELS, CLASSES),
        "details": {},
    }
    if items:
        made["outcomes"] = outcomes.packed(outcomes.classification(best, LABELS))
    made = json.loads(json.dumps(made))
    for name, value in changed.items():
        section, _, key = name.partition("__")
        made[section][key] = value
    return made


def ranks(count: int, scale: float, seed: int) -> Ranks:
    rng = np.random.default_rng(seed)
    return Ranks(rng.geometric(1 / scale, count) - 1, rng.integers(0, 2, count), rng.integers(1, 3, count))


def retrieved(scale: float, seed: int) -> dict[str, Any]:
    owner = np.repeat(np.arange(60), np.arange(60) % 4 + 1)
    to_text, to_image = ranks(60, scale, seed), ranks(len(owner), scale, seed + 50)
    to_image = Ranks(to_image.better, to_image.equal, np.ones(len(owner), dtype=np.int64))
    return {
        "format": 1,
        "task": "retrieval",
        "dataset": {"name": "drawn", "split": "test", "size": 60, "fingerprint": "e" * 64},
        "protocol": {},
        "metrics": metrics_of(to_text, to_image, owner)[0],
        "outcomes": outcomes.packed(outcomes.retrieval(to_text, to_image, owner)),
    }


def subject(name: str, *documents: dict[str, Any], seed: int | None = None) -> Subject:
    return Subject(name, (Member(name, documents, seed),))


def verdicts(comparison: Comparison) -> dict[str, str]:
    return {row.metric: row.verdict for row in comparison.rows}


# Outcomes


@pytest.mark.parametrize(
    "array",
    [
        np.arange(300),
        np.array([], dtype=np.int64),
        np.array([True, False, True] * 7),
        np.array([2**40, 0]),
        np.array([[1, 2], [3, 70_000]]),
        np.array([0.5, np.nan, -1.25]),
    ],
)
def test_an_array_comes_back_as_it_was(array: np.ndarray) -> None:
    back = outcomes.unpack(json.loads(json.dumps(outcomes.pack(array))))
    np.testing.assert_array_equal(back, array)
    assert back.shape == array.shape


def test_damaged_outcomes_are_an_error_that_names_the_task() -> None:
    document = zeroshot(0.5)
    document["outcomes"]["arrays"]["best"]["data"] = document["outcomes"]["arrays"]["best"]["data"][:-8]
    with pytest.raises(DataError, match="zeroshot are damaged"):
        item_metrics(document)
    edited = zeroshot(0.5, metrics__top1={"value": 0.9, "unit": "share"})
    with pytest.raises(DataError, match="do not give its top1"):
        compare([subject("a", zeroshot(0.5)), subject("b", edited)])


@pytest.mark.parametrize("document", [zeroshot(0.6), retrieved(4.0, 3)])
def test_items_give_the_metrics_of_the_document(document: dict[str, Any]) -> None:
    found = item_metrics(document)
    assert set(found) == {name for name in document["metrics"] if "median" not in name}
    for name, items in found.items():
        assert items.value == pytest.approx(document["metrics"][name]["value"], abs=1e-12)


def test_outcomes_are_compact() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(1000), 50)
    best = np.where(rng.random((50_000, 1)) < 0.6, labels[:, None], rng.integers(0, 1000, (50_000, 5)))
    size = len(json.dumps(outcomes.packed(outcomes.classification(best, labels))))
    assert size < 150_000  # of 50,000 images in 1,000 classes


# Statistics


def test_the_paired_bootstrap_is_plain_resampling() -> None:
    one, other = item_metrics(retrieved(4.0, 1)), item_metrics(retrieved(3.0, 2))
    names = list(one)
    made = paired.bootstrap([items for name in names for items in (one[name], other[name])], draws=40, seed=7)
    picks = np.random.default_rng(7).integers(0, 60, size=(40, 60))
    for place, name in enumerate(names):
        for which, items in enumerate((one[name], other[name])):
            slow = [sum(f * a[rows].sum() / b[rows].sum() for a, b, f in items.terms) for rows in picks]
            np.testing.assert_allclose(made[2 * place + which], slow)


def test_it_is_that_of_scipy() -> None:
    hits = [classified(skill, seed)[:, 0] == LABELS for skill, seed in ((0.5, 0), (0.56, 1))]
    items = [Items(((one.astype(float), np.ones(IMAGES), 1.0),)) for one in hits]
    first, second = paired.bootstrap(items, draws=8000)
    ours = paired.from_samples(items[1].value - items[0].value, second - first)
    theirs = stats.bootstrap(
        [one.astype(float) for one in hits],
        lambda a, b, axis: b.mean(axis) - a.mean(axis),
        paired=True,
        method="percentile",
        n_resamples=8000,
        random_state=0,
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    apart = paired.unpaired(*[(one.mean(), *wilson(one.sum(), IMAGES)) for one in hits])
    assert apart.low is not None and ours.low is not None and apart.low < ours.low  # pairing tells more


def test_within_classes_every_class_keeps_its_size() -> None:
    strata = np.array([2, 0, 0, 5, 2, 2, 0, 5])
    sums = paired.resampled(np.eye(8), 200, seed=1, strata=strata)
    for label, size in ((0, 3), (2, 3), (5, 2)):
        assert (sums[:, strata == label].sum(axis=1) == size).all()
    assert sums.std(axis=0).min() > 0


def test_p_values_of_models_that_do_not_differ_are_uniform() -> None:
    rng = np.random.default_rng(0)
    low = 0
    for trial in range(300):
        pair = [Items((((rng.random(150) < 0.4).astype(float), np.ones(150), 1.0),)) for _ in range(2)]
        first, second = paired.bootstrap(pair, draws=300, seed=trial)
        p = paired.from_samples(pair[1].value - pair[0].value, second - first).p
        assert p is not None
        low += p < 0.05
    assert 4 <= low <= 30  # expected 15, standard deviation 4


def test_small_tests_equal_their_references() -> None:
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([]) == []
    first = np.array([True] * 12 + [False] * 3 + [True] * 5)
    second = np.array([False] * 12 + [True] * 3 + [True] * 5)
    assert paired.mcnemar(first, second) == (12, 3, pytest.approx(2 * stats.binom.cdf(3, 15, 0.5)))
    assert paired.mcnemar(first, first) == (0, 0, 1.0)
    # Newcombe 1998, table II (a): 56/70 and 48/80, method 10.
    found = paired.unpaired((48 / 80, *wilson(48, 80)), (56 / 70, *wilson(56, 70)))
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
    values = [0.31, 0.34, 0.36]
    interval = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (paired.over_seeds(values).low, paired.over_seeds(values).high) == pytest.approx(interval)


def test_seeds_are_paired_where_they_are_the_same() -> None:
    one, other = {0: 0.30, 1: 0.34, 2: 0.33}, {0: 0.33, 1: 0.36, 2: 0.37}
    same = paired.seeds_apart(one, other)
    assert same is not None and same[1] == "paired t"
    assert same[0].p == pytest.approx(stats.ttest_rel(list(other.values()), list(one.values())).pvalue)
    shifted = paired.seeds_apart(one, {seed + 5: value for seed, value in other.items()})
    assert shifted is not None and shifted[1] == "Welch's t"
    assert shifted[0].p == pytest.approx(
        stats.ttest_ind(list(other.values()), list(one.values()), equal_var=False).pvalue
    )
    assert paired.seeds_apart(one, {0: 0.3}) is None


# Verdicts


def test_what_differs_is_told_from_noise() -> None:
    base = subject("base", zeroshot(0.5), retrieved(4.0, 1))
    better = compare([base, subject("b", zeroshot(0.62, 1), retrieved(1.5, 1))])
    assert verdicts(better)["top1"] == verdicts(better)["rsum"] == "better"
    worse = compare([base, subject("b", zeroshot(0.38, 1), retrieved(12.0, 1))])
    assert verdicts(worse)["top1"] == verdicts(worse)["rsum"] == "worse"
    same = compare([base, subject("b", zeroshot(0.5, 1), retrieved(4.0, 2))])
    assert set(verdicts(same).values()) == {"noise"}
    row = next(row for row in better.rows if row.metric == "top1")
    assert row.mcnemar is not None and row.mcnemar[2] < 1e-6
    assert row.items is not None and row.items.low is not None and row.items.low > 0
    assert row.holm is not None and row.p is not None and row.holm >= row.p


def test_every_model_is_compared_on_the_same_resamples_and_twice_alike() -> None:
    base, b, c = (subject(name, zeroshot(0.5 + 0.02 * k, k)) for k, name in enumerate("abc"))
    three, two = compare([base, b, c]), compare([base, c])
    first = [row.items for row in three.rows if row.model == "c"]
    assert first == [row.items for row in two.rows]
    assert [row.holm for row in three.rows if row.model == "c"] >= [row.holm for row in two.rows]


def test_without_outcomes_the_difference_is_not_paired_and_says_so() -> None:
    found = compare([subject("a", zeroshot(0.5)), subject("b", zeroshot(0.53, 1, items=False))])
    assert {row.method for row in found.rows} == {"unpaired"}
    with_items = compare([subject("a", zeroshot(0.5)), subject("b", zeroshot(0.53, 1))])
    wide, narrow = found.rows[0].items, with_items.rows[0].items
    assert wide is not None and narrow is not None
    assert wide.high - wide.low > narrow.high - narrow.low  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dataset__fingerprint": "0" * 64}, "different data"),
        ({"protocol__precision": "bf16"}, "different protocol: precision (fp32 / bf16)"),
    ],
)
def test_what_cannot_be_compared_is_named_with_the_reason(changed: dict[str, Any], words: str) -> None:
    found = compare([subject("a", zeroshot(0.5)), subject("b", zeroshot(0.9, **changed))])
    assert set(verdicts(found).values()) == {"not comparable"}
    assert all(words in row.reason and row.p is None for row in found.rows)
    judged = judge([parse_gate("--fail-drop", "top1=0.5")], found)
    assert not judged[0].passed and "cannot be judged" in judged[0].why


def test_draws_that_an_evaluation_kept_are_paired() -> None:
    common = np.random.default_rng(1).normal(0, 0.05, 200)

    def rated(value: float, seed: int) -> dict[str, Any]:
        draws = value + common + np.random.default_rng(seed).normal(0, 0.004, 200)
        metric = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 50, "unit": "correlation"}
        document = zeroshot(0.5, items=False) | {"task": "alignment", "metrics": {"kendall_tau": metric}}
        return document | {"outcomes": outcomes.packed({"draws_kendall_tau": draws}, seed=0)}

    found = compare([subject("a", rated(0.40, 2)), subject("b", rated(0.43, 3))]).rows[0]
    assert found.verdict == "better" and found.method.endswith("stored draws")
    assert found.items is not None and found.items.high - found.items.low < 0.03  # type: ignore[operator]


# Runs, seeds and the command


def seeded(folder: Path, name: str, objective: str, seed: int, document: dict[str, Any], **settings: Any) -> Path:
    run = make_run(folder, name, objective=objective, seed=seed, checkpoints=(), **settings)
    for file in (run.path / "evals").iterdir():
        file.unlink()
    (run.path / "metrics.jsonl").unlink()
    (run.path / "evals" / "a.json").write_text(json.dumps(document))
    return run.path


def test_runs_that_differ_by_seed_only_are_joined(tmp_path: Path) -> None:
    places = [
        seeded(tmp_path, f"{name}-seed-{seed}", name, seed, zeroshot(skill, 10 * seed))
        for name, skill in (("clip", 0.5), ("psd", 0.6))
        for seed in (1, 0, 2)
    ]
    other = seeded(tmp_path, "psd-longer", "psd", 0, zeroshot(0.5), steps=80)
    subjects = open_subjects([str(place) for place in [*places, other]])
    assert [(one.name, one.seeds) for one in subjects] == [
        ("clip (3 seeds)", (0, 1, 2)),
        ("psd (3 seeds)", (0, 1, 2)),
        ("psd-longer", (0,)),
    ]
    row = next(row for row in compare(subjects).rows if row.metric == "top1")
    of_runs = [zeroshot(0.6, 10 * seed)["metrics"]["top1"]["value"] for seed in range(3)]
    assert row.second == pytest.approx(np.mean(of_runs))
    assert row.seeds is not None and row.seeds.difference is not None and row.items is not None
    assert row.seeds.second.value == pytest.approx(np.mean(of_runs))
    assert row.p == max(row.items.p or 0, row.seeds.difference.p or 0)
    hits = [item_metrics(zeroshot(0.6, 10 * seed))["top1"] for seed in range(3)]
    assert averaged(hits).value == pytest.approx(np.mean(of_runs))
    (places[1] / "evals" / "b.json").write_text(json.dumps(retrieved(4.0, 1)))
    (places[4] / "evals" / "b.json").write_text(json.dumps(retrieved(4.0, 2)))
    told = remarks(compare(open_subjects([str(place) for place in places])))
    assert "not evaluated for every seed: retrieval drawn: 1 of 3 runs of clip (3 seeds)" in told
    assert len(open_subjects([str(place) for place in places], join=False)) == 6
    again = seeded(tmp_path, "clip-again", "clip", 0, zeroshot(0.5))
    with pytest.raises(UsageError, match="one setting with one seed"):
        open_subjects([str(places[1]), str(again)])


def test_a_folder_and_a_list_of_documents_are_read(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "one.json").write_text(json.dumps(zeroshot(0.5)))
    (tmp_path / "results" / "two.json").write_text(json.dumps(retrieved(4.0, 1)))
    (tmp_path / "results" / "other.json").write_text("{}")
    (tmp_path / "all.json").write_text(json.dumps([zeroshot(0.5), retrieved(4.0, 1)]))
    subjects = open_subjects([str(tmp_path / "results"), str(tmp_path / "all.json")])
    assert [one.name for one in subjects] == ["results", "all"]
    assert [len(one.members[0].documents) for one in subjects] == [2, 2]
    with pytest.raises(UsageError, match="named twice"):
        open_subjects([str(tmp_path / "results"), str(tmp_path / "results/")])


def command(*arguments: Any) -> tuple[int, str, str]:
    done = runner.invoke(app, ["compare", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_tells_verdicts_and_gates_end_with_six(tmp_path: Path) -> None:
    for name, document in (
        ("base", zeroshot(0.5)),
        ("good", zeroshot(0.62, 1)),
        ("bad", zeroshot(0.38, 1)),
        ("old", zeroshot(0.5, 2, items=False)),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    base, good, bad, old = (tmp_path / f"{name}.json" for name in ("base", "good", "bad", "old"))
    code, out, err = command(base, good, bad, old)
    assert code == 0, err
    assert "better" in out and "worse" in out and "noise" in out and "McNemar" in out
    assert "not paired" in err and "Holm" in err
    code, out, err = command(base, good, "--json", "--metrics", "top1", "--task", "zeroshot")
    document = json.loads(out)
    assert [row["metric"] for row in document["rows"]] == ["top1"]
    row = document["rows"][0]
    assert row["difference"]["low"] < row["difference"]["value"] < row["difference"]["high"]
    assert row["mcnemar"]["p"] < 0.05 and row["verdict"] == "better"

    assert command(base, good, "--fail-below", "top1=0.55", "--fail-drop", "zeroshot/top1=0.01")[0] == 0
    code, out, err = command(base, bad, "--fail-drop", "zeroshot:drawn/top1=0.01", "--json")
    assert code == 6 and json.loads(out)["gates"][0]["passed"] is False
    assert "1 of 1 checks failed" in err and "try:" in err
    assert command(base, bad, "--fail-drop", "top1=0.5")[0] == 0  # worse, but not by so much
    assert command(base, old, "--fail-drop", "top1=0")[0] == 0  # noise
    assert command(good, "--fail-below", "top1=0.99")[0] == 6  # one model is enough for a limit
    assert command(bad, good, "--fail-below", "top1=0.55")[0] == 0  # the baseline is not judged


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--fail-below", "top1"), 2, "expected [TASK[:DATASET]/]METRIC=NUMBER"),
        (("--fail-below", "top1=35"), 2, "top1=0.35"),
        (("--fail-below", "topp1=0.3"), 2, "speaks of no number"),
        (("--fail-drop", "top1=-0.1"), 2, "positive"),
        (("--metrics", "tpo1"), 2, "top1"),
        (("--task", "zeroshott"), 2, "zeroshot"),
        (("nowhere.json",), 3, "no result"),
        (("no-such-run",), 4, "no run"),
    ],
)
def test_what_goes_wrong_is_said(tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(zeroshot(0.5, ord(name))))
    got, out, err = command(tmp_path / "a.json", tmp_path / "b.json", *arguments)
    assert got == code, err
    assert words in " ".join(err.split())
    assert out == ""


def test_a_passed_check_raises_nothing() -> None:
    found = compare([subject("a", zeroshot(0.5)), subject("b", zeroshot(0.6, 1))])
    require_passed(judge([parse_gate("--fail-below", "top1=0.1")], found))
    with pytest.raises(CheckFailed):
        require_passed(judge([parse_gate("--fail-below", "top1=0.9")], found))
    assert share_metric(np.ones(3))["value"] == 1.0
