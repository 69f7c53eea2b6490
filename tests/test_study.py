"""Studies: the plan, cells equal to `softclip train`, going on after any end, failures that stop nobody else, the report."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from softclip_cli.app import app
from softclip_cli.config import build
from softclip_cli.data.corpus import Corpus
from softclip_cli.errors import UsageError
from softclip_cli.evaluation.corpus_sets import retrieval_task
from softclip_cli.evaluation.retrieval import retrieval
from softclip_cli.registry import open_model
from softclip_cli.study import runner as study_runner
from softclip_cli.study.plan import Level, Planner, unique
from softclip_cli.study.runner import run_study
from softclip_cli.study.settings import Study, own_values, read_study
from softclip_cli.study.store import read_table
from softclip_cli.study.trials import trials
from softclip_cli.study.workers import Workers
from softclip_cli.training.run_data import open_corpus
from softclip_cli.training.start import Plan, train

STUDIES = Path(__file__).resolve().parents[1] / "studies"
TRAIN = {
    "model": {"reference": "tiny", "lock": "image,text"},
    "data": {"batch_size": 16},
    "schedule": {"epochs": 2},
    "optimizer": {"lr": 3e-3},
}


def make(corpus: Path, **over) -> Study:
    """A little study: clip against psd."""
    rows = {"clip": {}, "psd": {"teacher": "ema", "alpha_end": 1.0}}
    base = {"name": "little", "corpus": str(corpus), "train": TRAIN, "objective": rows, "seeds": 2}
    return build(Study, {**base, "evaluate": ["retrieval:val"], **over})


def planner(study: Study) -> Planner:
    return Planner(study, study.corpus, "f" * 8)


def results(out: Path) -> dict[tuple, float]:
    table = read_table(out)
    part = table[table["when"] == "last"]
    return {(r.objective, r.noise, r.data, r.seed, r.stage): r["val/rsum"] for _, r in part.iterrows()}


# The plan


def test_all_mistakes_are_told_at_once(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text(
        'noise = [2.0]\nevaluate = ["nonsense:test"]\nbaseline = "x"\nselect = { when = "best" }\n'
        '[objective.clip]\nteacher = "ema"\n[objective.psd]\nalhpa = 1\n[objective.distill]\nteacher_row = "nobody"\n'
        "[train.optimizer]\nlr = -1\n"
    )
    with pytest.raises(UsageError) as caught:
        read_study(file)
    assert "objective.psd.alhpa" in caught.value.why
    file.write_text(file.read_text().replace("alhpa = 1", ""))
    with pytest.raises(UsageError) as caught:
        read_study(file)
    for words in (
        "noise must be",
        "nonsense:test",
        "'x' is no row",
        "needs curve",
        "objective.clip: ",
        "'nobody'",
        "optimizer.lr",
    ):
        assert words in caught.value.why, words


def test_every_setting_is_described_in_the_documentation():
    from softclip_cli.objectives.settings import ObjectiveSettings
    from softclip_cli.study.settings import Generate, Row, Select, Tuning

    text = (STUDIES.parent / "docs" / "studies.md").read_text()
    for section in (Study, Generate, Row, Select, Tuning):
        for name in set(section.model_fields) - set(ObjectiveSettings.model_fields):
            assert f"`{name}`" in text, (section.__name__, name)


@pytest.mark.parametrize("name", ["noise", "data", "psd-defaults"])
def test_the_studies_that_come_along_are_whole(name):
    study = read_study(STUDIES / f"{name}.toml", {"corpus": "corpus"})
    plan = planner(study)
    counts = Counter((cell.arm, cell.noise, cell.data) for cell in plan.trials() if cell.stage == "trial")
    assert set(counts.values()) <= {study.tuning.trials * len(study.trial_seeds)}
    final = plan.final({at: (0, {}) for at in plan.levels()})
    levels = len(study.arms()) * len(study.noise) * len(study.data)
    assert sum(cell.stage == "study" for cell in final) == levels * len(study.seed_list)


def test_a_cell_is_named_by_what_shapes_it_and_by_nothing_else(tmp_path):
    study = make(tmp_path)
    at = Level("psd", False, 0.4, 1.0)
    key = planner(study).cell(at, 0, "study", 0, {}).key
    for over in (
        {"train": {**TRAIN, "log": {"every": 3}}},
        {"title": "another"},
        {"objective": {"psd": {"teacher": "ema", "alpha_end": 1.0}, "siglip": {}}},
        {"corpus": "/elsewhere"},
    ):
        study = build(
            Study,
            {
                **make(tmp_path).model_dump(exclude_none=True, exclude={"objective"}),
                "objective": {"psd": {"teacher": "ema", "alpha_end": 1.0}},
            },
            over,
        )
        assert planner(study).cell(at, 0, "study", 0, {}).key == key
    changed = [
        planner(make(tmp_path, train={**TRAIN, "optimizer": {"lr": 1e-3}})).cell(at, 0, "study", 0, {}).key,
        planner(study).cell(at, 1, "study", 0, {}).key,
        planner(study).cell(Level("psd", False, 0.2, 1.0), 0, "study", 0, {}).key,
        planner(study).cell(Level("psd", True, 0.4, 1.0), 0, "study", 0, {}).key,
        planner(study).cell(at, 0, "study", 1, {"objective.alpha_end": 0.5}).key,
        Planner(study, str(tmp_path), "g" * 8).cell(at, 0, "study", 0, {}).key,
    ]
    assert len({key, *changed}) == 7


def test_an_oracle_without_noise_is_its_row(tmp_path):
    plan = planner(make(tmp_path, objective={"clip": {"oracle": True}}, noise=[0.0, 0.5], seeds=1))
    final = plan.final({at: (0, {}) for at in plan.levels()})
    assert [cell.arm for cell in final] == ["clip", "clip (oracle)"] * 2
    assert len(unique(final)) == 3
    assert final[-1].settings.data.drop_mismatched and not final[1].settings.data.drop_mismatched


def test_trials_are_as_many_for_all_and_begin_with_the_rows_own(tmp_path):
    grid = {"optimizer.lr": [1e-3, 3e-3, 1e-2], "objective.alpha_end": [0.5, 1.0]}
    study = make(tmp_path)
    own = own_values(study.run_settings("psd"), grid)
    assert own == {"optimizer.lr": 3e-3, "objective.alpha_end": 1.0}
    drawn = trials(grid, 4, 0, own)
    assert drawn[0] == {} and len(drawn) == 4 and own not in drawn
    assert len(trials(grid, 99, 0, own)) == 6  # five others and its own
    assert trials(grid, 4, 0, own) == drawn != trials(grid, 4, 1, own)
    values = [
        t["optimizer.lr"] for t in trials({"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}, 50, 0, {})[1:]
    ]
    assert len(set(values)) == 49 and min(values) < 1e-3 < 3e-3 < max(values) and min(values) >= 1e-4
    with pytest.raises(UsageError) as caught:
        make(tmp_path, tuning={"trials": 9, "grid": grid})
    assert "objective.clip" in caught.value.why and "less than tuning.trials" in caught.value.why
    with pytest.raises(UsageError, match="problem") as caught:
        make(tmp_path, tuning={"trials": 2, "grid": {"objective.alpha_end": [7.0]}})
    assert "alpha_end" in caught.value.why


def test_the_best_mean_of_all_trial_seeds_is_chosen_and_test_is_never_looked_at(tmp_path):
    tuning = {"trials": 3, "seeds": 2, "grid": {"optimizer.lr": [1e-3, 1e-2]}}
    study = make(tmp_path, noise=[0.0, 0.4], tuning=tuning, evaluate=["retrieval:test"])
    plan = planner(study)
    cells = plan.trials()
    assert len(cells) == 2 * 2 * 3 * 2 and all(cell.evaluate == () for cell in cells)
    assert {cell.seed for cell in cells} == {1000, 1001}
    score = {0: (5, 5), 1: (9, 0), 2: (6, 5)}  # trial 1 has the best seed, trial 2 the best mean
    found = {c.key: {"val/rsum": float(score[c.trial][c.seed - 1000])} for c in cells}
    chosen = plan.chosen(found)
    assert {trial for trial, _ in chosen.values()} == {2} and len(chosen) == 4
    # A choice that lacks a run is out, and a level without any is left out.
    for c in cells:
        if c.arm == "psd" and c.noise == 0.4 and (c.trial == 2 or c.seed == 1000):
            del found[c.key]
    chosen = plan.chosen(found)
    assert Level("psd", False, 0.4, 1.0) not in chosen and len(chosen) == 3
    final = plan.final(chosen)
    assert {cell.evaluate for cell in final} == {("retrieval:test",)}
    assert all(cell.settings.optimizer.lr == cell.choice["optimizer.lr"] for cell in final)


def test_one_choice_for_all_levels(tmp_path):
    tuning = {"trials": 2, "grid": {"optimizer.lr": [1e-3]}, "each": False, "noise": [0.4]}
    plan = planner(make(tmp_path, noise=[0.0, 0.2, 0.4], tuning=tuning))
    assert {cell.noise for cell in plan.trials()} == {0.4}
    chosen = plan.chosen({c.key: {"val/rsum": float(c.trial)} for c in plan.trials()})
    assert len(chosen) == 6 and {trial for trial, _ in chosen.values()} == {1}


# Running


@pytest.mark.parametrize(
    ("row", "locked"),
    [
        ({"name": "psd", "teacher": "ema", "alpha_end": 1.0}, True),
        ({"name": "cwcl", "teacher_model": "tiny"}, True),
        ({"name": "clip"}, False),
    ],
)
def test_a_cell_is_what_train_and_retrieve_give(colour_corpus, tmp_path, row, locked):
    settings = (
        TRAIN
        if locked
        else {**TRAIN, "model": {"reference": "tiny"}, "data": {"batch_size": 16, "workers": 0, "augment": "none"}}
    )
    study = make(colour_corpus, objective={"row": row}, train=settings, noise=[0.4], data=[0.5], seeds=[3], curve=True)
    run_study(study, tmp_path / "out")
    (value,) = results(tmp_path / "out").values()

    data = {"share": 0.5, "mismatched": 0.4, "corpus": str(colour_corpus)}
    same = study.run_settings("row", {"data": data, "schedule": {"seed": 3}})
    path = train(Plan(same, tmp_path / "run"))
    assert json.loads((path / "data.json").read_text())["pairs"] == 48
    model = open_model(str(path / "checkpoints" / sorted(p.name for p in (path / "checkpoints").glob("step-*"))[-1]))
    document = retrieval(model, retrieval_task(Corpus.open(colour_corpus), "val"))
    assert value == pytest.approx(document["metrics"]["rsum"]["value"], abs=1e-6)
    table = read_table(tmp_path / "out")
    (curve,) = {row.curve for row in table.itertuples()}
    assert [entry["epoch"] for entry in json.loads(curve)] == [1, 2]
    assert set(table["when"]) == {"last", "best"}
    assert table.set_index("when")["val/rsum"]["best"] == max(entry["val/rsum"] for entry in json.loads(curve))


def test_rows_are_paired_by_seed(colour_corpus):
    from softclip_cli.training.heads import Heads
    from softclip_cli.training.run_data import alteration, build_sampler

    study = make(colour_corpus, noise=[0.4], data=[0.5])
    plan = planner(study)
    cells = [plan.cell(Level(row, False, 0.4, 0.5), seed, "study", 0, {}) for row in ("clip", "psd") for seed in (0, 1)]
    heads = Heads(cells[0].settings)
    fresh = [heads.fresh(cell.settings) for cell in cells]
    changes = [alteration(heads.data, cell.settings) for cell in cells]
    orders = [
        build_sampler(change.rows, cell.settings).indices(1).tolist()
        for change, cell in zip(changes, cells, strict=True)
    ]
    for one, other in ((0, 2), (1, 3)):
        assert all(torch.equal(fresh[one][name], fresh[other][name]) for name in fresh[one])
        assert np.array_equal(changes[one].source, changes[other].source) and orders[one] == orders[other]
    assert orders[0] != orders[1] and not np.array_equal(changes[0].source, changes[1].source)


def test_a_study_goes_on_and_runs_only_what_changed(colour_corpus, tmp_path):
    study, out = make(colour_corpus, noise=[0.0, 0.4]), tmp_path / "out"
    first = run_study(study, out)
    assert (first.ran, first.finished, first.failed) == (8, 8, {})
    before = results(out)
    assert run_study(study, out).ran == 0
    # Half a file, as a full disk may leave it, is no result.
    lost = sorted((out / "cells").iterdir())[0]
    lost.write_text(lost.read_text()[:50])
    assert run_study(study, out).ran == 1
    assert results(out) == before
    changed = make(colour_corpus, noise=[0.0, 0.4], objective={"clip": {}, "psd": {"alpha_end": 0.5}})
    assert run_study(changed, out).ran == 4
    assert {k: v for k, v in results(out).items() if k[0] == "clip"} == {
        k: v for k, v in before.items() if k[0] == "clip"
    }
    assert study_runner.estimate(study, out).finished == 8
    assert (
        study_runner.estimate(make(colour_corpus, noise=[0.2], seeds=3), out).pending[0].startswith("clip, noise 0.2")
    )


def test_two_commands_do_not_run_in_one_folder(colour_corpus, tmp_path):
    study, out = make(colour_corpus), tmp_path / "out"
    refused = []

    def second(kind, facts):
        if kind == "cell" and not refused:
            with pytest.raises(UsageError, match="another process runs a study") as caught:
                run_study(study, out)
            refused.append(caught.value)

    assert run_study(study, out, report=second).finished == 4
    assert "lock" in refused[0].why and "--out" in refused[0].hint


def test_interrupted_after_a_cell_the_rest_is_left(colour_corpus, tmp_path, monkeypatch):
    from softclip_cli.errors import Interrupted

    study, out = make(colour_corpus), tmp_path / "out"

    def stop(kind, facts):
        if kind == "cell" and facts["done"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        run_study(study, out, report=stop)
    assert "2 runs are finished" in caught.value.what and caught.value.exit_code == 130
    assert len(read_table(out)["key"].unique()) == 2
    assert run_study(study, out).ran == 2


def test_a_teacher_row_runs_first_and_its_failure_is_its_pupils(colour_corpus, tmp_path):
    rows = {"distill": {"teacher_row": "clip"}, "clip": {}}
    out = tmp_path / "out"
    done = run_study(make(colour_corpus, objective=rows, seeds=1), out)
    assert (done.ran, done.failed) == (2, {}) and len(list((out / "heads").iterdir())) == 1
    # The teacher's weights are needed for another pupil, and were removed.
    next((out / "heads").iterdir()).unlink()
    again = run_study(
        make(
            colour_corpus,
            objective={**rows, "soft": {"name": "distill", "alpha_end": 0.5, "teacher_row": "clip"}},
            seeds=1,
        ),
        out,
    )
    assert again.ran == 2
    wild = {"optimizer": {"lr": 1e30, "clip_norm": 0, "max_skipped": 1}}
    failed = run_study(
        make(colour_corpus, objective={"distill": {"teacher_row": "clip"}, "clip": {"train": wild}}, seeds=1),
        tmp_path / "b",
    )
    assert (
        failed.finished == 0
        and sorted(failed.failed.values())[0] == "its teacher's run failed"
        and len(failed.failed) == 2
    )


def test_two_workers_give_what_one_gives_and_a_failure_stops_nobody(colour_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "s.toml"
    file.write_text(
        'seeds = 2\nevaluate = ["retrieval:val"]\nnoise = [0.4]\n[train]\nmodel = { reference = "tiny", lock = "image,text" }\n'
        "data = { batch_size = 16 }\nschedule = { epochs = 2 }\n[objective.clip]\n[objective.psd]\n"
        '[objective.wild]\nname = "clip"\ntrain.optimizer = { lr = 1e30, clip_norm = 0, max_skipped = 1 }\n'
    )
    run = ["study", "run", str(file), "--data", str(colour_corpus)]
    made = CliRunner().invoke(app, [*run, "--workers", "2", "--json"])
    assert made.exit_code == 6, made.stderr
    document = json.loads(made.stdout)
    assert document["ran"] == 4 and sorted(document["failed"]) == [
        f"wild, noise 0.4, data 1, seed {seed}" for seed in (0, 1)
    ]
    assert "2 runs of s failed" in made.stderr and "wild, noise 0.4, data 1, seed 0" in made.stderr
    assert len(list((tmp_path / "results/s/failed").iterdir())) == 2
    alone = CliRunner().invoke(app, [*run, "--only", "clip", "--only", "psd", "--out", "alone"])
    assert alone.exit_code == 0, alone.stderr
    assert results(Path("alone")) == results(Path("results/s"))


def test_a_worker_that_dies_fails_its_task_and_is_replaced(tmp_path):
    workers = Workers(1, tmp_path, False, 1, lambda kind, facts: None)
    try:
        (first,) = workers.all
        first.give(("ready", []))
        first.process.kill()
        (done,) = list(workers.results())
        assert "died" in done.error and "-9" in done.error
        assert workers.all[0] is not first and workers.all[0].process.is_alive() and workers.idle
    finally:
        workers.stop()
    assert not workers.all[0].process.is_alive()


def test_what_cannot_be_measured_is_told_before_anything_is_trained(colour_corpus, tmp_path):
    from softclip_cli.errors import DataError

    for over, kind, words in (
        ({"evaluate": ["composition:x"]}, UsageError, "no evaluation of the corpus"),
        ({"evaluate": ["retrieval:tset"]}, DataError, "tset"),
        ({"select": {"split": "dev"}}, DataError, "no split 'dev'"),
    ):
        with pytest.raises(kind, match=words):
            run_study(make(colour_corpus, **over), tmp_path / "out")
    assert not (tmp_path / "out" / "cells").exists()


# The commands


def test_dry_run_report_markdown_csv_and_plots(colour_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = make(
        colour_corpus, noise=[0.0, 0.4], data=[0.5, 1.0], curve=True, objective={"clip": {"oracle": True}, "psd": {}}
    )
    from softclip_cli.config import to_toml

    Path("s.toml").write_text(to_toml(study))
    dry = CliRunner().invoke(app, ["study", "run", "s.toml", "--dry-run", "--json"])
    assert dry.exit_code == 0, dry.stderr
    plan = json.loads(dry.stdout)
    assert plan["final"] == 20 and plan["finished"] == 0 and not plan["measured"] and not Path("results").exists()
    early = CliRunner().invoke(app, ["study", "report", "s.toml"])
    assert early.exit_code == 3 and "softclip study run" in early.stderr
    assert CliRunner().invoke(app, ["study", "run", "s.toml"]).exit_code == 0
    arguments = ["study", "report", "s.toml", "--markdown", "r.md", "--csv", "r.csv", "--plots", "plots"]
    made = CliRunner().invoke(app, arguments)
    assert made.exit_code == 0, made.stderr
    assert "clip (oracle)" in made.stdout and "Holm" in made.stderr
    for name in ("noise", "data", "compute"):
        assert (tmp_path / "plots" / f"{name}.png").stat().st_size > 5000
        svg = (tmp_path / "plots" / f"{name}.svg").read_text()
        assert "psd" in svg and "clip (oracle)" in svg
    table = pd.read_csv("r.csv")
    assert len(table) == 12 and table["n"].eq(2).all()
    results_table = read_table(Path("results/little"))
    line = table[(table["objective"] == "psd") & (table["noise"] == 0.4) & (table["data"] == 1)].iloc[0]
    runs = results_table[
        (results_table["when"] == "last") & (results_table["noise"] == 0.4) & (results_table["data"] == 1)
    ]
    means = runs.groupby("objective")["val/rsum"].mean()
    assert line["mean"] == pytest.approx(means["psd"])
    assert line["difference"] == pytest.approx(means["psd"] - means["clip"])
    assert Path("r.md").read_text().count("\n| ") == 13
    best = CliRunner().invoke(
        app, ["study", "report", "results/little", "--when", "best", "--baseline", "clip (oracle)", "--json"]
    )
    document = json.loads(best.stdout)
    assert document["baseline"] == "clip (oracle)" and document["when"] == "best"
    last = {(r["objective"], r["noise"], r["data"]): r["mean"] for r in table.to_dict("records")}
    assert all(r["mean"] >= last[r["objective"], r["noise"], r["data"]] for r in document["lines"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["study", "run", "none.toml"], 2, "none.toml"),
        (["study", "report", "none"], 2, "neither a study file"),
        (["study", "report", ".", "--when", "now"], 2, "--when last"),
        (["study", "run", str(STUDIES / "noise.toml")], 2, "--data CORPUS"),
        (["study", "run", str(STUDIES / "noise.toml"), "--data", "/none", "--dry-run"], 3, "/none"),
    ],
)
def test_mistakes(arguments, code, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.stderr
    assert words in result.stderr and len(result.stderr.strip().splitlines()) == 3


def test_a_generated_corpus_is_made_once_and_other_evaluations_are_flat_columns(tmp_path):
    study = build(
        Study,
        {
            "name": "g",
            "generate": {"pairs": 120, "per_class": 1, "image_size": 32},
            "train": TRAIN,
            "objective": {"clip": {}},
            "seeds": 1,
        },
        {"evaluate": ["retrieval:test", "zeroshot"]},
    )
    assert run_study(study, tmp_path / "out").ran == 1
    columns = set(read_table(tmp_path / "out").columns)
    assert {"val/rsum", "test/rsum", "test/image_to_text_r1"} <= columns and any(
        c.startswith("zeroshot:") and c.endswith("/top1") for c in columns
    )
    (path,) = (tmp_path / "out" / "corpora").iterdir()
    assert open_corpus(study.run_settings("clip", {"data": {"corpus": str(path)}}), lambda k, f: None).fingerprint
