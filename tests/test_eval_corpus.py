"""What a corpus offers is evaluated in one go, with the same numbers as each evaluation by itself."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from eval_fixtures import lively_model, pictures

from softclip_cli.data.corpus import Corpus, CorpusWriter, Record, features_for
from softclip_cli.data.decode import eval_view
from softclip_cli.errors import DataError
from softclip_cli.evaluation import corpus_evaluation, result
from softclip_cli.evaluation.composition import true_caption_wins
from softclip_cli.evaluation.corpus_evaluation import evaluate_corpus
from softclip_cli.evaluation.corpus_sets import classification_task, corpus_tasks, find_task
from softclip_cli.evaluation.item_metrics import item_metrics
from softclip_cli.evaluation.locate import classification_set
from softclip_cli.evaluation.locate_captions import retrieval_set
from softclip_cli.evaluation.locate_probe import probe_sets
from softclip_cli.evaluation.probe import probe
from softclip_cli.evaluation.retrieval import retrieval
from softclip_cli.evaluation.robustness import mean_over_shifts
from softclip_cli.evaluation.views import hash64
from softclip_cli.evaluation.zeroshot import zero_shot
from softclip_cli.model import Model

CLASSES = {"thing": ["circle", "square", "star"], "hue": ["red", "blue"]}
TASKS = {
    "zeroshot": {
        "thing": {"split": "test", "label": "label", "classes": "thing"},
        "hue": {"split": "test", "label": "hue", "classes": "hue", "prompts": ["something {}"]},
    },
    "probe": {"thing": {"train": "probe", "test": "test", "label": "label", "classes": "thing"}},
    "retrieval": {"test": {"split": "test"}},
    "shift": {"blur": {"split": "shift-blur", "label": "label", "classes": "thing"}},
    "composition": {"split": "composition"},
}


@pytest.fixture(scope="module")
def model() -> Model:
    return lively_model()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("corpora") / "drawn"
    text = datasets.Value("string")
    with CorpusWriter(path) as writer:
        labelled = features_for(class_names=CLASSES["thing"], extra={"hue": datasets.Value("int64")})
        for seed, (split, count) in enumerate((("test", 24), ("probe", 18), ("shift-blur", 12))):
            with writer.split(split, labelled) as part:
                for i, image in enumerate(pictures(count, seed=seed)):
                    captions = [f"a {CLASSES['thing'][i % 3]} number {i}", "nice picture"]
                    part.write(
                        Record(f"{split}-{i}", image, captions, label=i % 3, extra={"hue": i % 2 if i % 5 else None})
                    )
        extra = {"hard_negatives": datasets.List(text), "edit": text}
        with writer.split("composition", features_for(extra=extra)) as part:
            for i, image in enumerate(pictures(10, seed=9)):
                more = {
                    "hard_negatives": [f"wrong {i}", f"false {i % 3}"][: 1 + i % 2],
                    "edit": "swap" if i % 2 else "replace",
                }
                part.write(Record(f"c{i}", image, [f"true {i}"], extra=more))
        writer.info |= {"tasks": TASKS, "classes": CLASSES, "prompts": ["a picture of a {}", "one {}"]}
    return Corpus.open(path)


@pytest.fixture(scope="module")
def documents(model: Model, corpus: Corpus) -> dict[str, dict]:
    made = evaluate_corpus(model, corpus)
    names = [f"{task.kind}:{task.name}" for task in corpus_tasks(corpus)]
    return dict(zip(names, made, strict=True))


def same(one: dict, other: dict) -> bool:
    """Equal but for the time taken, which is no part of the result."""
    return json.dumps({**one, "seconds": 0}) == json.dumps({**other, "seconds": 0})


def test_all_that_is_offered_is_evaluated(documents: dict[str, dict]) -> None:
    assert list(documents) == [
        "zeroshot:thing",
        "zeroshot:hue",
        "probe:thing",
        "retrieval:test",
        "shift:blur",
        "composition:composition",
    ]
    assert [document["task"] for document in documents.values()] == [
        "zeroshot",
        "zeroshot",
        "probe",
        "retrieval",
        "shift",
        "composition",
    ]


def test_each_equals_the_evaluation_by_itself(model: Model, corpus: Corpus, documents: dict[str, dict]) -> None:
    path = str(corpus.path)
    assert same(documents["zeroshot:thing"], zero_shot(model, classification_set(path)))
    assert same(documents["zeroshot:hue"], zero_shot(model, classification_set(f"{path}:hue")))
    assert same(documents["retrieval:test"], retrieval(model, retrieval_set(path)))
    sets = probe_sets(f"{path}:thing")
    assert (sets.train.split, sets.test.split) == ("probe", "test")
    assert same(documents["probe:thing"], probe(model, sets.train, sets.test))


def test_outcomes_of_single_items_give_the_metrics_again(documents: dict[str, dict]) -> None:
    for name, document in documents.items():
        found = item_metrics(json.loads(json.dumps(document)))
        assert set(found) >= {
            "accuracy" if name.startswith("composition") else "rsum" if "retrieval" in name else "top1"
        }
        for metric in set(found) & set(document["metrics"]):
            assert found[metric].value == pytest.approx(document["metrics"][metric]["value"], abs=1e-9), (name, metric)


def test_example_queries_are_what_the_model_finds(model: Model, corpus: Corpus, documents: dict[str, dict]) -> None:
    rows = corpus.split("test")
    kept = documents["retrieval:test"]["details"]["examples"]
    pixels = torch.from_numpy(np.stack([eval_view(row["image"]["bytes"], model.preprocess) for row in rows]))
    captions = [caption for row in rows for caption in row["captions"]]
    with torch.no_grad():
        scores = model.encode_image(pixels) @ model.encode_text(model.tokenize(captions)).T
    for query in kept["text_to_image"]:
        column = captions.index(query["text"])
        best = [answer["score"] for answer in query["results"]]
        assert best == pytest.approx(torch.topk(scores[:, column], 5).values.tolist(), abs=1e-3)
        for answer in query["results"]:
            assert scores[answer["image"], column].item() == pytest.approx(answer["score"], abs=1e-3)
            assert answer["correct"] == (answer["image"] == query["image"])
    for query in kept["image_to_text"]:
        row = scores[query["image"]]
        assert query["results"][0]["score"] == pytest.approx(row.max().item(), abs=1e-3)
        for answer in query["results"]:
            assert answer["correct"] == (answer["text"] in rows[query["image"]]["captions"])
    for number, about in kept["images"].items():
        content = rows[int(number)]["image"]["bytes"]
        assert about["hash"] == format(hash64(content) & (2**64 - 1), "016x")
        assert about["caption"] == rows[int(number)]["captions"][0]


def test_each_split_is_embedded_once(model: Model, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    splits: list[str] = []
    whole = corpus_evaluation.embed_images

    def note(*args: object, **named: object) -> object:
        splits.append(str(named["split"]))
        return whole(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(corpus_evaluation, "embed_images", note)
    evaluate_corpus(model, corpus)
    assert sorted(splits) == ["composition", "probe", "shift-blur", "test"]


def test_images_without_a_label_are_left_out(corpus: Corpus) -> None:
    task = find_task(corpus, "zeroshot", "hue")
    assert task is not None
    data = classification_task(corpus, task)
    assert len(data.images) == 19 and data.images.key(0) == "test-1"
    assert data.prompts == ("something {}",) and data.class_names == ("red", "blue")


def test_a_shift_is_compared_with_the_unshifted_set(model: Model, corpus: Corpus, documents: dict[str, dict]) -> None:
    shift, zero = documents["shift:blur"], documents["zeroshot:thing"]
    task = find_task(corpus, "shift", "blur")
    assert task is not None
    alone = zero_shot(model, classification_task(corpus, task))
    assert shift["metrics"]["top1"] == alone["metrics"]["top1"]
    drop = shift["metrics"]["drop"]
    assert drop["value"] == pytest.approx(zero["metrics"]["top1"]["value"] - alone["metrics"]["top1"]["value"])
    assert drop["low"] <= drop["value"] <= drop["high"]
    assert same(shift, evaluate_corpus(model, corpus, tasks=["shift:blur"])[0])
    assert mean_over_shifts([shift, shift])["drop"] == pytest.approx(drop["value"])


def test_composition_equals_plain_loops(model: Model, corpus: Corpus, documents: dict[str, dict]) -> None:
    rows = corpus.split("composition")

    wins: dict[str, list[bool]] = {"swap": [], "replace": []}
    with torch.no_grad():
        for row in rows:
            pixels = torch.from_numpy(eval_view(row["image"]["bytes"], model.preprocess)[None].copy())
            image = model.encode_image(pixels)[0]
            scores = [
                float(image @ model.encode_text(model.tokenize([text]))[0])
                for text in [*row["captions"], *row["hard_negatives"]]
            ]
            wins[row["edit"]].append(scores[0] > max(scores[1:]))
    metrics = documents["composition:composition"]["metrics"]
    for edit, outcomes in wins.items():
        assert metrics[f"accuracy_{edit}"]["value"] == pytest.approx(np.mean(outcomes))
        assert metrics[f"accuracy_{edit}"]["n"] == len(outcomes)
    assert metrics["accuracy"]["value"] == pytest.approx(np.mean([*wins["swap"], *wins["replace"]]))
    assert documents["composition:composition"]["details"]["chance"] == pytest.approx((5 / 2 + 5 / 3) / 10)


def test_a_negative_that_equals_the_truth_is_no_win() -> None:
    images = F.normalize(torch.randn(3, 64), dim=1)
    truths = F.normalize(torch.randn(3, 64), dim=1)
    assert not true_caption_wins(images, truths, truths, np.arange(3)).any()


def test_what_is_not_offered_is_named(model: Model, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not offer the evaluation zeroshot:thin") as caught:
        evaluate_corpus(model, corpus, tasks=["zeroshot:thin"])
    assert "zeroshot:thing" in caught.value.hint
    with pytest.raises(DataError, match="no zeroshot task 'colour'"):
        classification_set(f"{corpus.path}:colour")
    with CorpusWriter(tmp_path / "plain") as writer, writer.split("train") as part:
        part.write(Record("a", pictures(1)[0], ["words"]))
    with pytest.raises(DataError, match="does not offer"):
        evaluate_corpus(model, Corpus.open(tmp_path / "plain"))
    with pytest.raises(DataError, match="has no split 'test'"):
        retrieval_set(str(tmp_path / "plain"))
    assert retrieval_set(f"{tmp_path / 'plain'}:train").gallery() == "1 images × 1 texts"


def test_results_are_written_whole_and_read_again(documents: dict[str, dict], tmp_path: Path) -> None:
    for document in documents.values():
        path = result.write(document, tmp_path / result.file_name(document))
        assert result.read(path) == json.loads(json.dumps(document))
    assert len(list(tmp_path.iterdir())) == len(documents)
    again = {**documents["zeroshot:thing"], "seconds": 99.0}
    assert result.file_name(again) == result.file_name(documents["zeroshot:thing"])
    other = {**again, "protocol": {**again["protocol"], "precision": "bf16"}}
    assert result.file_name(other) != result.file_name(again)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[]", "not an evaluation result"),
        ('{"format": 99, "task": "x", "dataset": {}, "metrics": {}}', "newer"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        result.read(path)
