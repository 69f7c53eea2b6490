"""A suite: every model on every dataset by every protocol that fits, resumable, each split being embedded once a model."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from softclip_cli import __version__
from softclip_cli.errors import DataError, SoftclipError
from softclip_cli.evaluation import result
from softclip_cli.evaluation.catalogue import catalogue
from softclip_cli.evaluation.embed import EmbeddingModel, EmbedOptions, ImageFeatures, Progress, embed_images
from softclip_cli.evaluation.find import COMMANDS, data_root, find_set, own_folder, parse_dataset, tasks_of
from softclip_cli.evaluation.images import Subset, digest
from softclip_cli.evaluation.locate import classification_set, multi_label_set
from softclip_cli.evaluation.locate_captions import retrieval_set
from softclip_cli.evaluation.locate_probe import NoTrainingSplit, probe_sets
from softclip_cli.evaluation.multilabel import multi_label
from softclip_cli.evaluation.probe import probe
from softclip_cli.evaluation.retrieval import retrieval
from softclip_cli.evaluation.sets import ClassificationSet, MultiLabelSet, RetrievalSet
from softclip_cli.evaluation.suite_tasks import PROTOCOLS
from softclip_cli.evaluation.zeroshot import zero_shot

FOLDER = Path("suite")  # for the results of models that belong to no run
FITTING = {"zeroshot": ("classification", "multi-label"), "probe": ("classification",), "retrieval": ("retrieval",)}
Evaluated = ClassificationSet | MultiLabelSet | RetrievalSet
State = Literal["done", "kept", "missing", "left out", "failed"]


@dataclass(frozen=True)
class Settings:
    """What holds for a whole suite.

    Attributes:
        protocols: of `PROTOCOLS`, what is made of each dataset where it fits.
        root: where catalogue datasets are; see `data_root`.
        out: folder of the results; None: `evals/` of the run that a model belongs to, else `FOLDER`.
        resume: whether results that are there are kept instead of made again.
        options: how to embed.
        seed: of the shares that a probe holds out.
    """

    protocols: tuple[str, ...] = PROTOCOLS
    root: Path | None = None
    out: Path | None = None
    resume: bool = True
    options: EmbedOptions = field(default_factory=EmbedOptions)
    seed: int = 0


@dataclass(frozen=True)
class Unit:
    """One model on one dataset: what one process does, its features being shared by the protocols."""

    number: int
    total: int
    model: str | None
    dataset: str


@dataclass(frozen=True)
class Outcome:
    """What became of one protocol of a unit, or of all of them where `protocol` is empty.

    Attributes:
        unit: the model and the dataset.
        protocol: "zeroshot", "probe" or "retrieval".
        state: "done" now; "kept" from an earlier suite; "missing", the dataset is not on this machine; "left out",
            there is no such thing for this dataset, or nothing to do it with; "failed".
        document: the result, where there is one.
        file: where it was written.
        what, why, hint: of the error, or the reason.
        exit_code: of the error.
    """

    unit: Unit
    protocol: str
    state: State
    document: dict[str, Any] | None = None
    file: str = ""
    what: str = ""
    why: str = ""
    hint: str = ""
    exit_code: int = 0


def units_of(models: Sequence[str | None], datasets: Sequence[str]) -> list[Unit]:
    """All pairs, the datasets of one model together."""
    pairs = [(model, dataset) for model in models for dataset in datasets]
    return [Unit(number, len(pairs), model, dataset) for number, (model, dataset) in enumerate(pairs)]


def run_units(
    units: Sequence[Unit],
    settings: Settings,
    device: torch.device,
    *,
    open_model: Callable[..., EmbeddingModel] | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
    finished: Callable[[Unit], None] = lambda _: None,
) -> Iterator[Outcome]:
    """Evaluate units one after another. Each result is written before the next begins; no error but a bug in here ends it.

    Args:
        units: one model's together, since the last model that was opened is kept.
        settings: of the suite.
        device: where the models are.
        open_model: from a reference to a model on `device`; by default the registry's.
        say: told each evaluation as it starts.
        progress: called with (done, total) of whatever is running.
        finished: told each unit after its last outcome.
    """
    from softclip_cli.registry import open_model as registered

    opener = open_model or registered
    model: EmbeddingModel | None = None
    opened: str | None = ""
    trouble: SoftclipError | None = None
    for unit in units:
        if unit.model != opened:
            model, trouble, opened = None, None, unit.model
            try:
                model = opener(unit.model, device=device)
            except SoftclipError as error:
                trouble = error
        if model is None:
            assert trouble is not None
            yield _failure(unit, "", trouble)
        else:
            yield from _run_unit(unit, model, settings, say, progress)
        finished(unit)


def _run_unit(
    unit: Unit, model: EmbeddingModel, settings: Settings, say: Callable[[str], None], progress: Progress | None
) -> Iterator[Outcome]:
    try:
        absent = _absent(unit.dataset, settings.root)
        tasks = [] if absent else tasks_of(unit.dataset)
    except SoftclipError as error:
        yield _failure(unit, "", error)
        return
    if absent:
        yield Outcome(unit, "", "missing", what=absent.what, why=absent.why, hint=absent.hint)
        return
    fitting = [name for name in settings.protocols if any(task in FITTING[name] for task in tasks)]
    if not fitting:
        yield _left_out(unit, tasks, settings.protocols)
        return
    features = _Shared(model, settings.options, "probe" in fitting, progress)
    for protocol in fitting:
        say(f"[{unit.number + 1}/{unit.total}] {model.name}: {unit.dataset}, {protocol}")
        try:
            several = "classification" not in tasks and "multi-label" in tasks
            yield _evaluate(unit, protocol, several, model, features, settings, progress)
        except NoTrainingSplit as error:
            yield Outcome(unit, protocol, "left out", what=error.what, why=error.why, hint=error.hint)
        except SoftclipError as error:
            yield _failure(unit, protocol, error)
        except Exception as error:  # a bug on one dataset must not lose the others
            where = traceback.format_exc()
            what = f"bug: {type(error).__name__}: {error}"
            yield Outcome(unit, protocol, "failed", what=what, why=where, exit_code=1)


def _absent(dataset: str, root: Path | None) -> DataError | None:
    """Why a dataset is not on this machine, or None."""
    try:
        base, part = parse_dataset(dataset)
        if own_folder(base) is None:
            name = {known.lower(): known for known in catalogue()}[base.lower()]
            find_set(name, catalogue()[name], data_root(root), part or None)
    except DataError as error:
        return error
    return None


def _left_out(unit: Unit, tasks: Sequence[str], protocols: Sequence[str]) -> Outcome:
    if not tasks:
        return _failure(unit, "", DataError(f"{unit.dataset} has no layout that can be evaluated"))
    what = f"a {tasks[0]} set has none of the protocols {', '.join(protocols)}"
    return Outcome(unit, "", "left out", what=what, hint=f"{COMMANDS[tasks[0]]} {unit.dataset}")


def _failure(unit: Unit, protocol: str, error: SoftclipError) -> Outcome:
    return Outcome(unit, protocol, "failed", what=error.what, why=error.why, hint=error.hint, exit_code=error.exit_code)


class _Shared:
    """The features of one dataset's splits for one model, each embedded when it is first asked for."""

    def __init__(self, model: EmbeddingModel, options: EmbedOptions, both: bool, progress: Progress | None) -> None:
        self.model, self.options, self.progress = model, options, progress
        self.kind: Literal["both", "projected"] = "both" if both else "projected"
        self._known: dict[str, ImageFeatures] = {}

    def of(self, data: Evaluated) -> ImageFeatures:
        """The features of a set, whose images may be some of another one's."""
        part = data.images
        whole = part.source if isinstance(part, Subset) else part
        key = whole.signature()
        if key not in self._known:
            self._known[key] = embed_images(
                self.model,
                whole,
                name=data.name,
                split=data.split,
                features=self.kind,
                options=self.options,
                progress=self.progress,
            )
        found = self._known[key]
        return found.take(np.asarray(part.indices)) if isinstance(part, Subset) else found


def _evaluate(
    unit: Unit,
    protocol: str,
    several: bool,
    model: EmbeddingModel,
    features: _Shared,
    settings: Settings,
    progress: Progress | None,
) -> Outcome:
    root, options = settings.root, settings.options
    make: Callable[[], dict[str, Any]]
    tested: Evaluated
    if protocol == "retrieval":
        tested = pairs = retrieval_set(unit.dataset, root=root)
        key = _key(model, protocol, settings, pairs)

        def make() -> dict[str, Any]:
            return retrieval(model, pairs, options=options, features=features.of(pairs), progress=progress)

    elif protocol == "probe":
        _require_training_split(unit.dataset, root)
        sets = probe_sets(unit.dataset, root=root, seed=settings.seed)
        tested = sets.test
        both = (sets.train, sets.test) if sets.validation is None else (sets.train, sets.test, sets.validation)
        key = _key(model, protocol, settings, *both)

        def make() -> dict[str, Any]:
            return probe(
                model,
                sets.train,
                sets.test,
                validation=sets.validation,
                options=options,
                features=(features.of(sets.train), features.of(sets.test)),
                seed=settings.seed,
                notes=sets.notes,
                progress=progress,
            )

    elif several:
        tested = labelled = multi_label_set(unit.dataset, root=root)
        key = _key(model, protocol, settings, labelled)

        def make() -> dict[str, Any]:
            return multi_label(model, labelled, options=options, features=features.of(labelled), progress=progress)

    else:
        tested = data = classification_set(unit.dataset, root=root)
        key = _key(model, protocol, settings, data)

        def make() -> dict[str, Any]:
            return zero_shot(model, data, options=options, features=features.of(data), progress=progress)

    folder = _folder(model, settings.out)
    file = folder / _file(protocol, key, tested)
    if settings.resume:
        kept = _kept(file, key)
        if kept is not None:
            return Outcome(unit, protocol, "kept", kept, str(file))
    document = make()
    document["details"]["suite"] = {"key": key, "dataset": unit.dataset}
    return Outcome(unit, protocol, "done", document, str(result.write(document, file)))


def _require_training_split(dataset: str, root: Path | None) -> None:
    base, _ = parse_dataset(dataset)
    if own_folder(base) is not None:
        return
    entry = catalogue()[base]
    if entry.train is None:
        return
    try:
        find_set(base, entry, data_root(root), entry.train)
    except DataError as error:
        raise NoTrainingSplit(
            f"{base}: its training split {entry.train!r} is not there", error.what, error.hint
        ) from None


def _file(protocol: str, key: str, data: Evaluated) -> str:
    words = f"{protocol}-{data.name}-{data.split}"
    return re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-") + f"-{key[:10]}.json"


def _key(model: EmbeddingModel, protocol: str, settings: Settings, *sets: Evaluated) -> str:
    """SHA-256 over what shapes a result: the weights, the data and the settings.

    The images are told by their source's signature (names, sizes and times of change, see `images.py`), which is there
    without reading them; the result itself has the hash of their bytes.
    """
    facts = [
        (
            one.name,
            one.split,
            one.images.signature(),
            one.content(),
            None if isinstance(one, RetrievalSet) else (one.class_names, one.prompts),
        )
        for one in sets
    ]
    seed = settings.seed if protocol == "probe" else None
    return digest(__version__, model.fingerprint(), protocol, settings.options.protocol(), seed, facts)


def _folder(model: EmbeddingModel, out: Path | None) -> Path:
    if out is not None:
        return out
    run = result.run_folder(model.reference)
    return run / "evals" if run is not None else FOLDER


def _kept(file: Path, key: str) -> dict[str, Any] | None:
    """The result of an earlier suite; None where there is none, or it is damaged."""
    if not file.is_file():
        return None
    try:
        document = result.read(file)
    except DataError:
        return None
    return document if document.get("details", {}).get("suite", {}).get("key") == key else None
