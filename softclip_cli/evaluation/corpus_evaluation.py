"""All that a corpus offers, in one go: every split is embedded once and its features are shared by the tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from softclip_cli.data.corpus import Corpus
from softclip_cli.errors import DataError, nearest
from softclip_cli.evaluation.composition import composition
from softclip_cli.evaluation.corpus_sets import (
    KINDS,
    Task,
    classification_task,
    composition_task,
    corpus_tasks,
    retrieval_task,
    training_split,
)
from softclip_cli.evaluation.embed import EmbeddingModel, EmbedOptions, ImageFeatures, Progress, embed_images
from softclip_cli.evaluation.images import ArrowImages
from softclip_cli.evaluation.probe import probe
from softclip_cli.evaluation.retrieval import retrieval
from softclip_cli.evaluation.robustness import add_drop
from softclip_cli.evaluation.sets import ClassificationSet
from softclip_cli.evaluation.zeroshot import zero_shot


class SplitFeatures:
    """The features of a corpus's splits for one model, each embedded when it is first asked for.

    Args:
        model, corpus, options: what is embedded, and how.
        both: the splits whose trunk features are wanted as well (a second pass over the images is saved).
        progress: called with (images done, images of this split).
    """

    def __init__(
        self,
        model: EmbeddingModel,
        corpus: Corpus,
        options: EmbedOptions,
        both: set[str],
        progress: Progress | None,
    ) -> None:
        self.model, self.corpus, self.options, self.both, self.progress = model, corpus, options, both, progress
        self._known: dict[str, ImageFeatures] = {}

    def __call__(self, split: str) -> ImageFeatures:
        """The features of all images of a split, in its order."""
        if split not in self._known:
            kind: Literal["both", "projected"] = "both" if split in self.both else "projected"
            self._known[split] = embed_images(
                self.model,
                ArrowImages(self.corpus.split(split), f"{self.corpus.fingerprint}/{split}"),
                name=self.corpus.path.name,
                split=split,
                features=kind,
                options=self.options,
                progress=self.progress,
            )
        return self._known[split]

    def of(self, data: ClassificationSet) -> ImageFeatures:
        """The features of a set on one of the splits, which may be a part of it."""
        from softclip_cli.evaluation.images import Subset

        whole = self(data.split)
        return whole.take(np.asarray(data.images.indices)) if isinstance(data.images, Subset) else whole


def choose_tasks(corpus: Corpus, wanted: Sequence[str]) -> list[Task]:
    """The tasks of a corpus that `wanted` names by "KIND" or "KIND:NAME".

    Raises:
        DataError: the corpus offers none of some name.
    """
    offered = corpus_tasks(corpus)
    names = [f"{task.kind}:{task.name}" for task in offered]
    unknown = [name for name in wanted if name not in KINDS and name not in names]
    chosen = [task for task, name in zip(offered, names, strict=True) if task.kind in wanted or name in wanted]
    if unknown or not chosen:
        raise DataError(
            f"{corpus.path} does not offer the evaluation {', '.join(unknown or wanted)}",
            "its corpus.json lists " + (", ".join(names) or "no evaluations"),
            nearest(unknown[0], [*names, *KINDS])
            if names and unknown
            else "the generated corpus has them all: softclip data generate OUT",
        )
    return chosen


def evaluate_corpus(
    model: EmbeddingModel,
    corpus: Corpus,
    *,
    tasks: Sequence[str] = KINDS,
    options: EmbedOptions | None = None,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Make the evaluations that `corpus.json` lists.

    Args:
        model: the model; its training mode is left as it was.
        corpus: a corpus with tasks, such as the generated one.
        tasks: which kinds ("zeroshot", "probe", "retrieval", "shift", "composition"), or single ones by "KIND:NAME"
            such as "zeroshot:kind-colour".
        options: how to embed.
        say: told the name of each evaluation as it starts.
        progress: called with (done, total) of whatever is running.

    Returns:
        One result document an evaluation. A `shift` document has its drop against the zero-shot result of the same
        classes on their own split, which is made (but not returned) if it was not asked for.

    Raises:
        DataError: the corpus offers none of these, or an image cannot be decoded.
        ModelError: an embedding is not finite.
    """
    options = options or EmbedOptions()
    chosen = choose_tasks(corpus, tasks)
    probed = [task for task in chosen if task.kind == "probe"]
    splits = {split for task in probed for split in (task.split, training_split(corpus, task)) if split}
    features = SplitFeatures(model, corpus, options, splits, progress)
    documents: list[dict[str, Any]] = []
    zero_shots: dict[str, dict[str, Any]] = {}

    def zero(task: Task) -> dict[str, Any]:
        data = classification_task(corpus, task)
        return zero_shot(model, data, options=options, features=features.of(data), progress=progress)

    for task in chosen:
        if say is not None:
            say(f"{task.kind} {task.name}")
        if task.kind == "zeroshot":
            document = zero_shots[str(task.spec.get("classes"))] = zero(task)
        elif task.kind == "shift":
            classes = str(task.spec.get("classes"))
            if classes not in zero_shots:
                unshifted = [
                    t for t in corpus_tasks(corpus, ("zeroshot",)) if t.spec.get("classes") == task.spec.get("classes")
                ]
                if not unshifted:
                    raise DataError(f"{corpus.path}: shift {task.name!r} has no unshifted set of the same classes")
                zero_shots[classes] = zero(unshifted[0])
            document = add_drop(zero(task), zero_shots[classes])
        elif task.kind == "probe":
            train_split = training_split(corpus, task)
            if train_split is None:
                raise DataError(f"{corpus.path}: no split carries the labels that the probe {task.name!r} is fitted on")
            train, test = classification_task(corpus, task, train_split), classification_task(corpus, task)
            pair = features.of(train), features.of(test)
            document = probe(model, train, test, options=options, features=pair, progress=progress)
        elif task.kind == "retrieval":
            pairs = retrieval_task(corpus, task.split)
            document = retrieval(model, pairs, options=options, features=features(task.split), progress=progress)
        else:
            contrasts = composition_task(corpus, task)
            document = composition(model, contrasts, options=options, features=features(task.split), progress=progress)
        documents.append(document)
    return documents
