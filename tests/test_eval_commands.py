"""The evaluation commands as a user types them: tables, JSON, where results go, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from eval_fixtures import lively_model, pictures, write_class_folders
from typer.testing import CliRunner

from softclip_cli.commands import datasets, evaluate, probe, retrieve
from softclip_cli.data.corpus import CorpusWriter, Record, features_for

app = typer.Typer()
app.add_typer(evaluate.app, name="eval")
app.command()(probe.probe)
app.command()(retrieve.retrieve)
app.add_typer(datasets.app, name="datasets")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with one checkpoint."""
    run = tmp_path_factory.mktemp("runs") / "2026-01-01-000000-psd"
    checkpoint = run / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    lively_model().save(checkpoint)
    (run / "config.toml").write_text("")
    (run / "status.json").write_text(
        json.dumps({"state": "finished", "step": 10, "updated": "2026-01-01T00:00:00+00:00"})
    )
    return run


@pytest.fixture(autouse=True)
def runs(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTCLIP_RUNS", str(run_folder.parent))


def call(*words: str | Path, code: int = 0) -> tuple[str, str]:
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == code, found.output + repr(found.exception)
    return found.stdout, found.stderr


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("eval", "zeroshot", "--dataset", "imagenet"), "imagenet"),
        (("probe", "--dataset", "cifar10"), "cifar10"),
        (("retrieve", "--split", "coco-5k"), "coco-5k"),
    ],
)
def test_a_missing_dataset_exits_with_3_and_helps(words: tuple[str, ...], name: str, tmp_path: Path) -> None:
    stdout, stderr = call(*words, code=3)
    assert stdout == ""
    assert f"dataset {name} is not on this machine" in stderr
    assert (
        "Accepted layouts" in stderr and "hf download" in stderr and str(tmp_path / "data") in stderr.replace("\n", "")
    )


def test_zero_shot_on_a_folder_with_the_newest_run(run_folder: Path, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "animals", {"cat": 3, "dog": 3})
    stdout, stderr = call("eval", "zeroshot", "--dataset", tmp_path / "animals")
    assert "6 images, 2 classes" in stdout and "top-1" in stdout and "mean per class" in stdout
    assert "model: newest run 2026-01-01-000000-psd" in stderr and "step-00000010" in stderr
    (written,) = (run_folder / "evals").glob("zeroshot-animals-*.json")
    document = json.loads(written.read_text())
    assert document["dataset"]["name"] == "animals" and document["model"]["reference"] == "run:2026-01-01-000000-psd"
    call("eval", "zeroshot", "--dataset", tmp_path / "animals")
    assert len(list((run_folder / "evals").glob("zeroshot-animals-*.json"))) == 1


def test_json_is_one_document_and_out_is_obeyed(run_folder: Path, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "birds", {"owl": 2, "wren": 2})
    before = len(list((run_folder / "evals").glob("*")))
    out = tmp_path / "results" / "x.json"
    stdout, _ = call("eval", "zeroshot", "--dataset", tmp_path / "birds", "--model", run_folder, "--out", out, "--json")
    document = json.loads(stdout)
    assert document == json.loads(out.read_text())
    assert set(document) == {
        "format",
        "task",
        "dataset",
        "protocol",
        "model",
        "metrics",
        "details",
        "outcomes",
        "versions",
        "seconds",
    }
    assert len(list((run_folder / "evals").glob("*"))) == before


def test_an_untrained_model_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "set", {"a": 1, "b": 1})
    call("eval", "zeroshot", "--dataset", "./set", "--model", "tiny", "--no-cache")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_probe_and_its_few_shot_form(tmp_path: Path) -> None:
    for seed, (split, count) in enumerate((("train", 8), ("test", 3))):
        write_class_folders(tmp_path / "set", {"a": count, "b": count}, split, seed=seed)
    stdout, stderr = call("probe", "--dataset", tmp_path / "set")
    assert "linear probe" in stdout and "C = " in stderr and "fitted on 16 images of train" in stderr
    document = json.loads(call("probe", "--dataset", tmp_path / "set", "--shots", "2", "--json")[0])
    assert document["protocol"]["shots"] == 2 and len(document["details"]["draws"]) == 5
    _, stderr = call("probe", "--dataset", tmp_path / "set", "--train-split", "test", code=3)
    assert "are training images too" in stderr


def test_retrieval_of_a_corpus_by_either_option(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "pairs") as writer, writer.split("test") as part:
        for number, image in enumerate(pictures(6)):
            part.write(Record(str(number), image, [f"picture {number}", f"{number} again"]))
    for option in ("--split", "--dataset"):
        stdout, _ = call("retrieve", option, tmp_path / "pairs")
        assert "6 images × 12 texts" in stdout and "R@10" in stdout and "rsum" in stdout
    _, stderr = call("retrieve", "--split", f"{tmp_path / 'pairs'}:train", code=3)
    assert "has no split 'train'" in stderr


def test_all_that_a_corpus_offers(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "drawn") as writer, writer.split("test", features_for(class_names=["x", "y"])) as part:
        for number, image in enumerate(pictures(6)):
            part.write(Record(str(number), image, [f"picture {number}"], label=number % 2))
        writer.info["classes"] = {"letters": ["x", "y"]}
        writer.info["tasks"] = {
            "zeroshot": {"letters": {"split": "test", "classes": "letters"}},
            "retrieval": {"test": {"split": "test"}},
        }
    stdout, _ = call("eval", "corpus", tmp_path / "drawn", "--out", tmp_path / "results")
    assert "letters" in stdout and "R@1 image→text" in stdout
    assert len(list((tmp_path / "results").glob("*.json"))) == 2
    only = json.loads(call("eval", "corpus", tmp_path / "drawn", "--task", "zeroshot", "--json")[0])
    assert [document["task"] for document in only] == ["zeroshot"]
    assert "does not offer" in call("eval", "corpus", tmp_path / "drawn", "--task", "shift", code=3)[1]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--dataset", "SET", "--model", "no-such-model"), 4, "no model named"),
        (("--dataset", "SET", "--precision", "fp8"), 2, "precision"),
        (("--dataset", "SET", "--device", "abacus"), 2, "no device named"),
        (("--dataset", "SET", "--device", "cuda:99"), 5, "this machine has no"),
        (("--dataset", "SET", "--cache", "x", "--no-cache"), 2, "exclude each other"),
        (("--dataset", "SET", "--split", "val"), 3, "has no split 'val'"),
        (("--dataset", "SET", "--classnames", "absent.txt"), 3, "absent.txt cannot be read"),
        (("--dataset", "SET/absent"), 3, "no dataset folder"),
        ((), 2, "--dataset"),
    ],
)
def test_bad_input_has_its_exit_code(words: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "set", {"a": 1, "b": 1})
    words = tuple(word.replace("SET", str(tmp_path / "set")) for word in words)
    stdout, stderr = call("eval", "zeroshot", *words, code=code)
    assert stdout == "" and message in stderr


def test_a_broken_image_exits_with_3(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "set", {"a": 2, "b": 2})
    (tmp_path / "set" / "b" / "1.png").write_bytes(b"no image")
    stderr = call("eval", "zeroshot", "--dataset", tmp_path / "set", code=3)[1]
    assert "set (split all)" in stderr and "b/1.png" in stderr


def test_the_catalogue_is_listed_and_shown(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "data" / "pacs", {"dog": 1, "cat": 1}, "photo")
    stdout, _ = call("datasets", "list")
    assert all(name in stdout for name in ("imagenet", "coco-5k", "flickr8k", "not here"))
    rows = {row["name"]: row for row in json.loads(call("datasets", "list", "--json")[0])}
    assert rows["pacs"]["present"] == str(tmp_path / "data" / "pacs") and rows["imagenet"]["present"] is None
    shown = json.loads(call("datasets", "show", "ImageNet", "--json")[0])
    assert shown["classes"] == 1000 and "hf download ILSVRC/imagenet-1k" in shown["download"]
    assert "Russakovsky" in call("datasets", "show", "imagenet")[0]
    assert "cifar10" in call("datasets", "show", "cifar11", code=3)[1]


@pytest.mark.parametrize(
    "words",
    [("eval", "zeroshot"), ("eval", "corpus"), ("probe",), ("retrieve",), ("datasets", "list"), ("datasets", "show")],
)
def test_help_has_every_common_option(words: tuple[str, ...]) -> None:
    stdout, _ = call(*words, "--help")
    assert "--json" in stdout and "--debug" in stdout


def test_saved_embeddings_give_the_recalls_again(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "pairs") as writer, writer.split("test") as part:
        for number, image in enumerate(pictures(12)):
            part.write(Record(f"key {number}", image, [f"picture {number}", "the same words", f"{number} again"]))
    out = tmp_path / "vectors"
    stdout, stderr = call("retrieve", "--split", tmp_path / "pairs", "--save-embeddings", out, "--json")
    document = json.loads(stdout)
    assert f"embeddings: {out}" in stderr.replace("\n", "")
    images, texts = (np.load(out / f"{name}.npy", mmap_mode="r") for name in ("images", "texts"))
    assert images.dtype == texts.dtype == np.float32 and texts.shape == (36, images.shape[1])
    assert np.linalg.norm(texts, axis=1) == pytest.approx(np.ones(36), abs=1e-5)
    assert (texts[1] == texts[4]).all() and (texts[0] != texts[3]).any()
    keys, captions = pq.read_table(out / "images.parquet"), pq.read_table(out / "texts.parquet")
    assert keys["key"].to_pylist() == [f"key {number}" for number in range(12)]
    assert captions["text"].to_pylist()[3:5] == ["picture 1", "the same words"]
    owner = captions["image"].to_numpy()
    assert owner.tolist() == [row // 3 for row in range(36)] == [row // 3 for row in captions["row"].to_pylist()]
    scores = texts.astype(np.float64) @ images.astype(np.float64).T
    for k in (1, 5):
        hits = [(scores[j] > scores[j, owner[j]]).sum() < k for j in range(36)]
        assert document["metrics"][f"text_to_image_r{k}"]["value"] == pytest.approx(np.mean(hits))
    facts = json.loads((out / "embeddings.json").read_text())
    assert facts["images"] == 12 and facts["dataset"] == document["dataset"] and facts["model"] == document["model"]


def test_embeddings_do_not_overwrite_anything(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "images.npy").write_text("mine")
    _, stderr = call("retrieve", "--split", tmp_path / "none", "--save-embeddings", tmp_path / "full", code=2)
    assert "is there already" in stderr and "name another folder" in stderr
    assert (tmp_path / "full" / "images.npy").read_text() == "mine"
