"""The side-by-side table: what may share a row, who is called better, and how numbers are written."""

from __future__ import annotations

import json
import math

import pytest
from fake_runs import document, evaluations, make_run, metric, write
from hypothesis import given
from hypothesis import strategies as st

from softclip_cli.reports import facts, sections
from softclip_cli.reports.differences import differing_settings, flatten
from softclip_cli.reports.tables import (
    Cell,
    better_of,
    main_rows,
    markdown_table,
    metric_rows,
    text_table,
)

SHARES = st.floats(0, 1)
CELLS = st.tuples(SHARES, SHARES, SHARES).map(sorted).map(lambda three: Cell(three[1], three[0], three[2]))


@given(st.lists(CELLS, min_size=2, max_size=4), st.booleans())
def test_only_a_model_beyond_all_other_intervals_is_better(cells: list[Cell], higher: bool) -> None:
    expected = None
    for i, cell in enumerate(cells):
        others = [other for j, other in enumerate(cells) if j != i]
        if all((cell.low > other.high) if higher else (cell.high < other.low) for other in others):
            expected = i
    assert better_of(cells, higher) == expected


def test_without_an_interval_or_a_rival_nobody_is_better() -> None:
    sure = Cell(0.9, 0.88, 0.92)
    assert better_of([Cell(0.1), sure]) is None
    assert better_of([None, sure]) is None
    assert better_of([sure]) is None
    assert better_of([None, sure, Cell(0.5, 0.4, 0.6)]) == 1


def test_values_intervals_and_differences_come_out_as_they_went_in() -> None:
    a, b = evaluations(0.5), evaluations(0.7)
    rows = metric_rows({"a": a, "b": b})
    wanted = {
        (one["task"], one["dataset"]["name"], name): (entry, other["metrics"][name])
        for one, other in zip(a, b, strict=True)
        for name, entry in one["metrics"].items()
    }
    assert len(rows) == len(wanted)
    for row in rows:
        first, second = wanted[row.task, row.dataset, row.metric]
        assert [cell and (cell.value, cell.low, cell.high) for cell in row.cells] == [
            (entry["value"], entry["low"], entry["high"]) for entry in (first, second)
        ]
        plain = row.as_dict(["a", "b"])
        assert plain["difference"] == pytest.approx(second["value"] - first["value"], abs=1e-12)
        assert json.loads(json.dumps(plain)) == plain


def test_rows_are_in_the_order_of_the_tasks_and_main_rows_leave_refinements_out() -> None:
    rows = metric_rows({"a": evaluations(0.5)})
    tasks = list(dict.fromkeys(row.task for row in rows))
    assert tasks == ["zeroshot", "shift", "probe", "retrieval", "composition"]
    left = {row.metric for row in main_rows(rows)}
    assert left == {"top1", "accuracy", "rsum", *(f"{way}_r{k}" for way in WAYS for k in (1, 5, 10))}
    odd = metric_rows({"a": [document("zeroshot", "x", {"hit_at_2": metric(0.3)})]})
    assert main_rows(odd) == odd  # an evaluation without a main metric keeps what it has


WAYS = ("image_to_text", "text_to_image")


def test_the_same_name_over_different_data_never_shares_a_row() -> None:
    one = document("zeroshot", "x", {"top1": metric(0.2)})
    other = document("zeroshot", "x", {"top1": metric(0.9)}, data={"fingerprint": "e" * 64})
    rows = metric_rows({"a": [one], "b": [other]})
    assert [[cell is not None for cell in row.cells] for row in rows] == [[True, False], [False, True]]
    assert all("different data" in row.note for row in rows)
    assert {row.better for row in rows} == {None}
    assert {row.difference for row in rows} == {None}


def test_differing_protocols_are_named_and_outcomes_in_a_protocol_are_not() -> None:
    def shift(prompts: int, reference: float) -> dict[str, object]:
        against = {"name": "x", "top1": reference}
        return document("shift", "x:blur", {"top1": metric(0.2)}, protocol={"prompts": prompts, "reference": against})

    assert metric_rows({"a": [shift(7, 0.5)], "b": [shift(7, 0.6)]})[0].note == ""
    note = metric_rows({"a": [shift(7, 0.5)], "b": [shift(1, 0.5)]})[0].note
    assert note == "protocols differ: prompts (7 / 1)"


def test_two_protocols_of_one_model_become_two_rows_and_the_newest_document_counts() -> None:
    def probe(shots: int, value: float) -> dict[str, object]:
        return document("probe", "x", {"accuracy": metric(value)}, protocol={"shots": shots})

    rows = metric_rows({"a": [probe(1, 0.1), probe(16, 0.4), probe(1, 0.2)], "b": [probe(16, 0.5)]})
    found = {row.variant: [cell and cell.value for cell in row.cells] for row in rows}
    assert found == {"shots 1": [0.2, None], "shots 16": [0.4, 0.5]}


def test_numbers_are_written_in_percent_or_points_with_their_interval() -> None:
    recalls = {f"{way}_r{k}": metric(0.1 * k**0.5) for way in WAYS for k in (1, 5, 10)}
    added = 100 * sum(entry["value"] for entry in recalls.values())
    points = {"value": added, "low": added - 10, "high": added + 10, "n": 1000, "unit": "points"}
    ranks = {"value": 12.0, "n": 1000, "unit": "rank"}
    rows = {
        row.metric: row
        for row in metric_rows(
            {"a": [document("retrieval", "x", {**recalls, "rsum": points, "text_to_image_median_rank": ranks})]}
        )
    }
    assert rows["text_to_image_r1"].text(0) == "10.0 [8.3, 12.0]"
    assert rows["text_to_image_r1"].label == "text → image R@1"
    assert rows["rsum"].text(0) == f"{added:.1f} [{added - 10:.1f}, {added + 10:.1f}]"
    assert rows["text_to_image_median_rank"].text(0) == "12.0"
    assert rows["text_to_image_median_rank"].higher_is_better is False
    shares = {name: {"value": entry["value"]} for name, entry in recalls.items()}
    older = document("retrieval", "x", {**shares, "rsum": {"value": added / 100}})  # recalls added as shares
    assert next(row for row in metric_rows({"a": [older]}) if row.metric == "rsum").text(0) == f"{added:.1f}"


def test_a_lower_rank_is_better_and_a_drop_is_not_judged() -> None:
    low = {"value": 2.0, "low": 1.5, "high": 2.5, "unit": "rank"}
    high = {"value": 9.0, "low": 8.0, "high": 10.0, "unit": "rank"}
    ranks = metric_rows(
        {"a": [document("retrieval", "x", {"median": low})], "b": [document("retrieval", "x", {"median": high})]}
    )
    assert ranks[0].better == 0
    drops = [document("shift", "x:blur", {"drop": metric(share)}) for share in (0.1, 0.6)]
    assert metric_rows({"a": drops[:1], "b": drops[1:]})[0].better is None


def test_a_number_that_is_none_is_shown_as_absent_and_stays_valid_json() -> None:
    rows = metric_rows({"a": [document("probe", "x", {"accuracy": {"value": math.nan}})]})
    assert rows[0].text(0) == "–"
    json.dumps(rows[0].as_dict(["a"]), allow_nan=False)


def test_the_terminal_table_has_a_difference_for_two_models_only() -> None:
    documents = {name: evaluations(skill) for name, skill in (("a", 0.2), ("b", 0.9), ("c", 0.5))}
    columns, lines = text_table(metric_rows({name: documents[name] for name in "ab"}), ["a", "b"])
    assert columns == ["evaluation", "metric", ">a", ">b", ">difference"]
    probe = next(line for line in lines if line[0].startswith("probe"))
    assert probe[1:] == ["accuracy", "58.0 [54.9, 61.0]", "86.0 [83.7, 88.0] *", "+28.0"]
    columns, lines = text_table(metric_rows(documents), list(documents))
    assert columns == ["evaluation", "metric", ">a", ">b", ">c"]
    assert {len(line) for line in lines} == {5}


def test_markdown_cells_cannot_break_out_of_the_table() -> None:
    table = markdown_table(("a", "b"), [("x|y", "two\nlines"), (None, 1)], right=(1,))
    assert table.splitlines() == ["| a | b |", "|---|---:|", "| x\\|y | two lines |", "|  | 1 |"]


TREES = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=2), TREES, max_size=3))
def test_a_tree_does_not_differ_from_itself_and_every_leaf_is_named(tree: dict[str, object]) -> None:
    assert differing_settings([tree, tree]) == []
    assert differing_settings([tree, {}]) == list(flatten(tree))


def test_the_verdict_counts_what_the_table_marks() -> None:
    rows = main_rows(metric_rows({"a": evaluations(0.5), "b": evaluations(0.6)}))
    wins = [sum(row.better == index for row in rows) for index in (0, 1)]
    sentence = sections.verdict(rows, ["a", "b"])
    assert wins[0] == 0
    assert f"Of the {len(rows)} main numbers, b is better in {wins[1]} " in sentence
    assert f"the other {len(rows) - wins[1]}" in sentence
    same = metric_rows({"a": evaluations(0.5), "b": evaluations(0.5)})
    assert "In none of" in sections.verdict(same, ["a", "b"])
    assert sections.verdict(rows, ["a"]) == ""
    bare = metric_rows({name: [document("probe", "x", {"accuracy": {"value": 0.5}})] for name in "ab"})
    assert "not judged" in sections.verdict(bare, ["a", "b"])


def test_neighbouring_sets_with_one_metric_are_joined_under_one_heading() -> None:
    groups = sections.result_groups(main_rows(metric_rows({"a": evaluations(0.5)})))
    shifts = next(group for group in groups if group.task == "Zero-shot under distribution shift")
    assert [row.label for row in shifts.rows] == ["outline", "recoloured", "textured", "blur", "pixelated"]
    assert shifts.dataset == "generated, top-1"
    assert shifts.size == "n = 1,000, chance 25\N{NO-BREAK SPACE}%"
    plain = next(group for group in groups if group.task == "Zero-shot classification")
    levels = [row.label.replace("\N{NO-BREAK SPACE}", " ") for row in plain.rows]
    assert levels == ["kind-colour (chance 1.56 %)", "kind (chance 25 %)"]
    assert plain.size == "n = 1,000"
    assert sum(len(group.rows) for group in groups) == len(main_rows(metric_rows({"a": evaluations(0.5)})))


def test_the_hardest_classes_come_first_and_the_middle_of_many_is_left_out() -> None:
    entries = [{"class": f"class {i}", "n": 10, "accuracy": (i * 37 % 200) / 200} for i in range(200)]
    one = document(
        "zeroshot",
        "many",
        {"top1": metric(0.5)},
        details={"per_class": [*entries, {"class": "empty", "accuracy": None}]},
    )
    (table,) = sections.class_tables(["a"], {"a": [one]})
    accuracies = [values[0] for _, values in table.rows]
    assert accuracies == sorted(accuracies)
    assert accuracies[0] == 0
    assert accuracies[-1] == max(entry["accuracy"] for entry in entries)
    assert len(table.rows) + table.left_out == 200


def test_noise_is_told_in_shares_however_it_is_stored() -> None:
    shares = facts.noise_text({"noise": {"clean": 0.7, "mismatched": 0.2, "vague": 0.1}})
    counts = facts.noise_text({"noise": {"clean": 7000, "mismatched": 2000, "vague": 1000, "partial": 0}})
    assert shares.replace("\N{NO-BREAK SPACE}", " ") == "mismatched 20 %, vague 10 %"
    assert counts == shares
    assert facts.noise_text({}) == ""


def test_noise_is_read_from_the_corpus_only_while_it_is_the_same_corpus(tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = make_run(tmp_path / "runs", "a")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write(corpus / "corpus.json", {"fingerprint": "a" * 64, "noise": {"clean": 6, "vague": 4}})
    write(run.path / "data.json", {"corpus": str(corpus), "pairs": 10, "fingerprint": "a" * 64})
    assert facts.noise_text(facts.corpus_facts(type(run)(run.path))) == "vague 40\N{NO-BREAK SPACE}%"
    write(run.path / "data.json", {"corpus": str(corpus), "pairs": 10, "fingerprint": "b" * 64})
    assert facts.noise_text(facts.corpus_facts(type(run)(run.path))) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (59, "59 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (200_000, "2 days"),
        (None, ""),
    ],
)
def test_durations_are_for_people(seconds: float | None, text: str) -> None:
    assert facts.duration(seconds) == text
