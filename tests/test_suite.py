"""The suite: shared features, resuming, missing and failing datasets, task lists, and several processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_fixtures import lively_model, pictures, write_class_folders
from processes import CommandServer
from typer.testing import CliRunner

from softclip_cli.app import app
from softclip_cli.errors import ModelError, UsageError
from softclip_cli.evaluation.cache import FeatureCache
from softclip_cli.evaluation.embed import EmbedOptions
from softclip_cli.evaluation.locate import classification_set
from softclip_cli.evaluation.locate_captions import retrieval_set
from softclip_cli.evaluation.locate_probe import probe_sets
from softclip_cli.evaluation.probe import probe
from softclip_cli.evaluation.retrieval import retrieval
from softclip_cli.evaluation.suite import Outcome, Settings, run_units, units_of
from softclip_cli.evaluation.suite_tasks import PROTOCOLS, parse_protocols, parse_tasks, suites
from softclip_cli.evaluation.suite_workers import in_processes
from softclip_cli.evaluation.zeroshot import zero_shot
from softclip_cli.model import Model

CPU = torch.device("cpu")
EMBED = EmbedOptions(workers=0)


class Counting:
    """Opens one model and counts the images that go through its tower."""

    def __init__(self, seed: int = 0) -> None:
        self.model, self.images = lively_model(seed), 0
        trunk = self.model.image_trunk

        def counted(pixels: torch.Tensor) -> torch.Tensor:
            self.images += len(pixels)
            return trunk(pixels)[:, :30]  # narrow features: the fits take most of the time

        head = self.model.image_head
        self.model.image_trunk = counted
        self.model.image_head = lambda features, normalize=True: head(
            torch.nn.functional.pad(features, (0, self.width - features.shape[1])), normalize
        )
        self.width = trunk(torch.zeros(1, *(self.model.preprocess.size,) * 2, 3, dtype=torch.uint8)).shape[1]

    def __call__(self, reference: str | None, *, device: torch.device) -> Model:
        if reference == "broken":
            raise ModelError("no model named broken")
        return self.model


@pytest.fixture(scope="module")
def counting() -> Counting:
    return Counting()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint: an untrained model by name has other weights each time."""
    folder = tmp_path_factory.mktemp("weights") / "m"
    folder.mkdir()
    lively_model().save(folder)
    return str(folder)


@pytest.fixture
def opener(counting: Counting) -> Counting:
    counting.images = 0
    return counting


def write_captions(folder: Path, count: int = 6) -> Path:
    (folder / "images").mkdir(parents=True)
    rows = ["image,caption"]
    for number, image in enumerate(pictures(count, size=8, seed=7)):
        (folder / "images" / f"{number}.jpg").write_bytes(image)
        rows += [f"{number}.jpg,caption {number} {word}" for word in ("a", "b")]
    (folder / "captions.txt").write_text("\n".join(rows))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    """Class folders with and without splits, and a folder with captions."""
    for seed, split in enumerate(("train", "test")):
        write_class_folders(tmp_path / "split", {"ant": 8, "bee": 7}, split, seed)
    write_class_folders(tmp_path / "whole", {"cow": 10, "dog": 10}, seed=2)
    write_captions(tmp_path / "pairs")
    return {name: str(tmp_path / name) for name in ("split", "whole", "pairs")}


def run(
    opener: Counting, datasets: list[str], out: Path, *, models: tuple[str, ...] = ("m",), **settings: Any
) -> list[Outcome]:
    chosen = Settings(out=out, **({"options": EMBED} | settings))
    return list(run_units(units_of(models, datasets), chosen, CPU, open_model=opener))


@pytest.mark.parametrize("cached", [False, True])
def test_each_image_goes_through_the_tower_once(opener: Counting, data: dict, tmp_path: Path, cached: bool) -> None:
    options = EmbedOptions(workers=0, cache=FeatureCache(tmp_path / "cache") if cached else None)
    outcomes = run(opener, list(data.values()), tmp_path / "out", options=options)
    assert [(Path(o.unit.dataset).name, o.protocol, o.state) for o in outcomes] == [
        ("split", "zeroshot", "done"),
        ("split", "probe", "done"),
        ("whole", "zeroshot", "done"),
        ("whole", "probe", "done"),
        ("pairs", "retrieval", "done"),
    ]
    assert opener.images == 30 + 20 + 6


def test_results_are_those_of_the_commands(opener: Counting, data: dict, tmp_path: Path) -> None:
    found = {(Path(o.unit.dataset).name, o.protocol): o.document for o in run(opener, list(data.values()), tmp_path)}
    model = opener.model
    for name in ("split", "whole"):
        plain = zero_shot(model, classification_set(data[name]), options=EMBED)
        sets = probe_sets(data[name])
        fitted = probe(model, sets.train, sets.test, validation=sets.validation, options=EMBED, notes=sets.notes)
        for protocol, document in (("zeroshot", plain), ("probe", fitted)):
            ours = found[name, protocol]
            assert ours is not None
            for key in ("metrics", "protocol", "dataset"):
                assert ours[key] == document[key], (name, protocol, key)
    pairs = found["pairs", "retrieval"]
    assert pairs is not None
    assert pairs["metrics"] == retrieval(model, retrieval_set(data["pairs"]), options=EMBED)["metrics"]


def test_what_is_done_is_kept_until_something_that_shapes_it_changes(
    opener: Counting, data: dict, tmp_path: Path
) -> None:
    out, datasets = tmp_path / "out", [data["split"], data["pairs"]]
    states: Callable[..., list[str]] = lambda **more: [o.state for o in run(opener, datasets, out, **more)]  # noqa: E731
    assert states() == ["done"] * 3
    opener.images = 0
    assert states() == ["kept"] * 3
    assert opener.images == 0
    assert states(resume=False) == ["done"] * 3
    test_image = Path(data["split"]) / "test" / "ant" / "0.png"
    test_image.write_bytes(pictures(1, size=16, seed=50)[0])
    assert states() == ["done", "done", "kept"]
    train_image = Path(data["split"]) / "train" / "ant" / "0.png"
    train_image.write_bytes(pictures(1, size=16, seed=51)[0])
    assert states() == ["kept", "done", "kept"]
    assert states(seed=1) == ["kept", "done", "kept"]
    assert states(options=EmbedOptions(workers=0, precision="bf16")) == ["done"] * 3
    next(out.glob("retrieval-*.json")).write_text("{")
    assert states() in (["kept", "kept", "done"], ["kept", "kept", "kept"])  # fp32's or bf16's was damaged
    other = Counting(seed=1)
    assert [o.state for o in run(other, datasets, out)] == ["done"] * 3


def test_a_suite_that_was_killed_goes_on(opener: Counting, data: dict, tmp_path: Path) -> None:
    units, chosen = units_of(["m"], list(data.values())), Settings(out=tmp_path / "out", options=EMBED)
    going = run_units(units, chosen, CPU, open_model=opener)
    first = next(going)
    going.close()
    assert Path(first.file).is_file()
    assert [o.state for o in run_units(units, chosen, CPU, open_model=opener)] == ["kept", *["done"] * 4]


def test_missing_and_failing_datasets_do_not_lose_the_others(
    opener: Counting, data: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(data["split"]) / "test" / "bee" / "0.png").write_bytes(b"no image")
    datasets = [data["split"], "mnist", str(tmp_path / "nowhere"), data["whole"], "flickr8k-cf"]
    outcomes = run(opener, datasets, tmp_path / "out", root=tmp_path / "root", models=("m", "broken"))
    first = [(o.protocol, o.state, o.exit_code) for o in outcomes if o.unit.model == "m"]
    assert first == [
        ("zeroshot", "failed", 3),
        ("probe", "failed", 3),
        ("", "missing", 0),
        ("", "missing", 0),
        ("zeroshot", "done", 0),
        ("probe", "done", 0),
        ("", "missing", 0),
    ]
    assert "bee/0.png" in outcomes[0].what
    assert "mnist is not on this machine" in outcomes[2].what
    assert {(o.state, o.exit_code) for o in outcomes if o.unit.model == "broken"} == {("failed", 4)}

    def bug(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("softclip_cli.evaluation.suite.zero_shot", bug)
    outcomes = run(opener, [data["whole"]], tmp_path / "other")
    assert [(o.state, o.exit_code) for o in outcomes] == [("failed", 1), ("done", 0)]
    assert outcomes[0].what == "bug: ZeroDivisionError: oh"


def test_shipped_lists_name_known_datasets_and_say_where_they_come_from() -> None:
    assert set(suites()) >= {"clip27", "imagenet-shifts", "retrieval"}
    assert len(suites()["clip27"].datasets) == len(set(suites()["clip27"].datasets)) == 27
    for name, suite in suites().items():
        assert suite.source
        found = parse_tasks(name)
        assert found.datasets
        assert (*found.datasets, *found.unknown) != ()
        assert len(found.datasets) + len(found.unknown) == len(suite.datasets)
    assert parse_tasks("clip27").unknown == ("kinetics700", "hateful-memes")


def test_lists_of_ones_own(tmp_path: Path, data: dict) -> None:
    assert parse_tasks(f"CIFAR10, {data['split']}").datasets == ("cifar10", data["split"])
    assert parse_tasks("cifar10,cifar10").datasets == ("cifar10",)
    mine = tmp_path / "mine.toml"
    mine.write_text('datasets = ["cifar10", "flickr8k"]\nprotocols = ["retrieval", "zeroshot"]')
    found = parse_tasks(str(mine))
    assert (found.name, found.datasets, found.protocols) == ("mine", ("cifar10", "flickr8k"), ("zeroshot", "retrieval"))
    assert parse_protocols("probe,zeroshot") == PROTOCOLS[:2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cliip27", "clip27"),
        ("cifar10,cifar11", "cifar10"),
        (",", "no dataset"),
        ("nowhere.toml", "cannot be read"),
    ],
)
def test_what_names_no_suite_is_refused_with_the_nearest(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_tasks(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "content", ["datasets = [", "sets = ['a']", "datasets = 3", "datasets = ['cifar10']\nprotocols = ['x']"]
)
def test_a_damaged_list_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(UsageError):
        parse_tasks(str(tmp_path / "mine.toml"))
    with pytest.raises(UsageError, match="no protocol"):
        parse_protocols("zeroshott")


def call(*words: str | Path, code: int = 0) -> tuple[str, str]:
    found = CliRunner().invoke(app, ["eval", "suite", *(str(word) for word in words)])
    assert found.exit_code == code, found.output + repr(found.exception)
    return found.stdout, found.stderr


def test_the_command_prints_one_table_and_what_is_missing(data: dict, weights: str, tmp_path: Path) -> None:
    common = (
        "--model",
        weights,
        "--data-root",
        tmp_path / "root",
        "--out",
        tmp_path / "out",
        "--no-cache",
        "--workers",
        "0",
    )
    names = ",".join([data["whole"], data["pairs"], "mnist", "cars"])
    options = ("--tasks", names, "--protocol", "zeroshot,retrieval", *common)
    stdout, stderr = call(*options)
    assert stdout.count("top-1") == 1
    assert "R@1 image→text" in stdout
    assert "2 of 4 datasets are not on this machine: mnist, cars" in stderr
    assert f"[1/4] {weights}: " in stderr
    stdout, stderr = call(*options, "--json")
    document = json.loads(stdout)
    assert (len(document["results"]), document["kept"], document["missing"]) == (2, 2, ["mnist", "cars"])
    assert "2 of 2 results were there already" in stderr
    assert sorted(map(str, (tmp_path / "out").iterdir())) == sorted(document["files"])
    assert "2 of 4 datasets are not on this machine" in call(*options, "--strict", code=3)[1]
    assert "dataset mnist is not on this machine" in call("--tasks", "mnist", *common, code=3)[1]
    assert "auto or never" in call(*options, "--resume", "perhaps", code=2)[1]
    (Path(data["whole"]) / "cow" / "0.png").write_bytes(b"no image")
    stdout, stderr = call(*options, code=3)
    assert "R@1 image→text" in stdout
    assert "zeroshot: whole" in stderr or "cow/0.png" in stderr


def test_worker_processes_share_the_work_and_one_that_dies_is_told(data: dict, weights: str, tmp_path: Path) -> None:
    units = units_of([weights], [data["split"], data["whole"], data["pairs"]])
    said: list[str] = []
    chosen = Settings(protocols=("zeroshot", "retrieval"), options=EMBED)
    spread = in_processes(units, Settings(**(vars(chosen) | {"out": tmp_path / "spread"})), ["cpu", "cpu"], said.append)
    alone = list(run_units(units, Settings(**(vars(chosen) | {"out": tmp_path / "alone"})), CPU))
    assert [o.state for o in spread] == ["done"] * 3
    for ours, theirs in zip(spread, alone, strict=True):
        assert ours.unit == theirs.unit
        assert ours.document is not None
        assert theirs.document is not None
        assert ours.document["metrics"] == theirs.document["metrics"]
    assert [line.partition(f" {weights}: ")[0] for line in sorted(said)] == ["cpu: [1/3]", "cpu: [2/3]", "cpu: [3/3]"]
    # A device that does not exist ends the process that is given it before its first evaluation.
    lost = in_processes(
        units[:2], Settings(**(vars(chosen) | {"out": tmp_path / "spread"})), ["cpu", "nothing:0"], said.append
    )
    assert [(o.state, o.exit_code) for o in lost] == [("kept", 0), ("failed", 5)]
    assert "ended with code 1 before" in lost[1].what


def test_ranks_deal_out_the_datasets(commands: CommandServer, data: dict, weights: str, tmp_path: Path) -> None:
    names, out = ",".join(data.values()), tmp_path / "out"
    options = (
        "--protocol",
        "zeroshot,retrieval",
        "--model",
        weights,
        "--no-cache",
        "--workers",
        0,
        "--device",
        "cpu",
        "--json",
    )
    ranks = commands.start_ranks(2, "eval", "suite", "--tasks", names, "--out", out, *options)
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.said for rank in ranks]
    first, second = (rank.said for rank in ranks)
    document = json.loads(first[first.index("{\n") :])
    assert [Path(result["details"]["suite"]["dataset"]).name for result in document["results"]] == list(data)
    assert "rank 0: [1/3]" in first
    assert "rank 0: [3/3]" in first
    assert "rank 1: [2/3]" in second
    assert "{" not in second
    assert len(list(out.iterdir())) == 3
