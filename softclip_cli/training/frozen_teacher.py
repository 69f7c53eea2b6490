"""A frozen teacher: opened, fitted to the run, and asked once about the whole split (stored) or in each step (live).

Live, it sees the student's very views, augmentation and all, as in open_clip: consistent teaching, which Beyer et al. 2022 ("Knowledge
distillation: a good teacher is patient and consistent", arXiv 2106.05237) found to matter. Stored, it costs one pass over the data
instead of one an epoch, and sees the whole picture in its own resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from softclip_cli.data.altered import Alteration
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.sharded.corpus import ShardedCorpus, ShardedSplit
from softclip_cli.data.text import Tokenize
from softclip_cli.errors import HostError, ModelError
from softclip_cli.evaluation.embed import EmbedOptions
from softclip_cli.model import Model
from softclip_cli.registry import open_model, parse_reference
from softclip_cli.resources import memory, size
from softclip_cli.training.distributed import World, first_ahead
from softclip_cli.training.features import default_options, teacher_embeddings
from softclip_cli.training.run_folder import Report
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.teachers import LiveTeacher, StoredTeacher, Teacher

if TYPE_CHECKING:
    import datasets

# Above this many bytes a process, storing is not chosen by itself. A constant, so that a resumed run chooses as it did at first.
MAX_STORED = 4 << 30


@dataclass(frozen=True)
class Circumstances:
    """What decides between stored and live.

    Attributes:
        frozen_student: both of the student's trunks are frozen, so that batches hold no pixels.
        augmented: whether the student's views differ from epoch to epoch.
        student_size, teacher_size: sides of their images in pixels.
        rows: images of the training split.
        seen: samples in the whole run.
        stored_bytes: what the stored embeddings take.
        before: what was chosen when a run that is gone on with started.
    """

    frozen_student: bool
    augmented: bool
    student_size: int
    teacher_size: int
    rows: int
    seen: int
    stored_bytes: int
    before: str = ""


def choose_features(asked: str, run: Circumstances) -> tuple[str, str]:
    """("stored" or "live", the reason).

    Args:
        asked: "auto", "stored" or "live".
        run: what decides.
    """
    stored = size(run.stored_bytes)
    if asked != "auto":
        return asked, "as asked"
    if run.before:
        return run.before, "as when this run started"
    if run.frozen_student:
        return "stored", "both trunks are frozen, so there are no pixels to show it"
    if run.stored_bytes > MAX_STORED:
        return "live", f"its embeddings of all images and captions would take {stored}"
    if run.teacher_size > run.student_size:
        seen = f"it takes {run.teacher_size} px and the student's views have {run.student_size}"
        return "stored", f"{seen}, so it is shown the whole pictures, once ({stored})"
    if run.augmented:
        once = f"data.teacher_features = stored asks it once about every image and caption ({stored})"
        return "live", f"it sees the student's own augmented views; {once}"
    if run.seen <= run.rows:
        return "live", "the run is no longer than an epoch"
    return "stored", f"the views are the same in every epoch ({stored})"


def open_teacher(reference: str, *, device: torch.device, seed: int) -> Model:
    """Open the checkpoint of a frozen teacher.

    Args:
        reference: a model reference.
        device: where it computes.
        seed: of weights that the reference does not bring.

    Raises:
        ModelError: the reference names no model; says by which setting it came.
    """
    try:
        model = open_model(reference, device=device, seed=seed)
    except ModelError as error:
        raise ModelError(f"objective.teacher_model: {error.what}", error.why, error.hint) from error
    model.net.to(memory_format=torch.channels_last)
    return model


@dataclass(frozen=True)
class FrozenTeacher:
    """An opened checkpoint, and what is wanted of it.

    Attributes:
        model: the checkpoint.
        texts: whether its text embeddings are needed.
    """

    model: Model
    texts: bool

    @property
    def trunk(self) -> bool:
        """Whether images are taken before the projection: in a pair of towers that one is new, and only the trunk knows something."""
        return not self.texts and parse_reference(self.model.reference).kind == "pair"

    def warnings(self) -> list[str]:
        """What is wrong with it as a teacher."""
        parsed, reference = parse_reference(self.model.reference), self.model.reference
        if parsed.kind == "architecture" and not parsed.weights:
            return [f"the teacher {reference} is untrained: it has nothing to teach"]
        if parsed.kind == "pair" and self.texts:
            return [
                f"the projections of the teacher {reference} are untrained: its images and texts have nothing in common"
            ]
        return []

    def stored_bytes(self, data: datasets.Dataset | ShardedSplit, captions: str) -> int:
        """What the stored embeddings of a split take."""
        count = 0 if not self.texts else len(data) if captions == "first" else count_captions(data)
        width = self.model.image.visual.trunk.num_features if self.trunk else self.model.embed_dim
        return 4 * width * (len(data) + count)

    def record(self, features: str) -> dict[str, Any]:
        """What data.json says of it."""
        return {
            "reference": self.model.reference,
            "name": self.model.name,
            "fingerprint": self.model.fingerprint(),
            "image_size": self.model.preprocess.size,
            "features": features,
        }

    def live(self, dtype: torch.dtype) -> LiveTeacher:
        """The teacher that is asked in each step."""
        return LiveTeacher(self.model, dtype, texts=self.texts, trunk=self.trunk)

    def stored(
        self,
        corpus: Corpus | ShardedCorpus,
        split: str,
        data: datasets.Dataset | ShardedSplit,
        captions: str,
        *,
        processes: int,
        options: EmbedOptions,
        progress: Callable[[str, int, int], None],
    ) -> StoredTeacher:
        """The teacher that was asked about the whole split: now, or earlier, with its answers in the cache.

        Args:
            corpus, split, data, captions: what is trained on, and whether on "random" captions or the "first" of each image.
            processes: on this machine; each holds all embeddings.
            options: how to embed.
            progress: (what, done, total).

        Raises:
            HostError: there is not enough memory.
        """
        needed, free = self.stored_bytes(data, captions), memory()[1]
        if free is not None and needed * processes > free:
            each = f" in each of {processes} processes" if processes > 1 else ""
            raise HostError(
                f"the teacher's embeddings of split {split!r} take {size(needed)} of memory{each}",
                f"{size(free)} are free",
                "--set data.teacher_features=live, or --set data.captions=first for one caption an image",
            )
        store = teacher_embeddings(
            self.model,
            corpus,
            split,
            data,
            captions=captions,
            texts=self.texts,
            trunk=self.trunk,
            options=options,
            progress=progress,
        )
        return StoredTeacher(store, self.model.logit_scale.detach().clone())


@dataclass(frozen=True)
class Prepared:
    """A frozen teacher that is ready for the loop.

    Attributes:
        teacher: gives a batch's embeddings.
        tokens: what the batches' `teacher_text` is made with; None where they need none.
        record: what data.json says.
    """

    teacher: Teacher
    tokens: Tokenize | None
    record: dict[str, Any]


def prepare_teacher(
    frozen: FrozenTeacher,
    settings: TrainSettings,
    corpus: Corpus | ShardedCorpus,
    data: datasets.Dataset | ShardedSplit,
    *,
    change: Alteration | None = None,
    student: Model,
    steps: int,
    dtype: torch.dtype,
    world: World,
    before: dict[str, Any],
    keep_features: bool = True,
    report: Report,
) -> Prepared:
    """Choose between stored and live, say why, and ask the teacher about the split where it is to be stored.

    Args:
        frozen: the teacher.
        settings, corpus, data, steps, world: of the run; `data` is the split that is trained on.
        change: what is changed of it.
        student: the model that is trained, its trunks locked as they will be.
        dtype: arithmetic of the towers, the teacher's too.
        before: what data.json said of the teacher before, where a run is gone on with; else empty.
        keep_features: keep stored embeddings in the cache, for the next run over the same data.
        report: told of the choice, of progress, and of what is doubtful.

    Raises:
        ModelError: the teacher has changed since the run started.
        HostError: its embeddings do not fit the memory.
    """
    wanted = settings.data
    for line in frozen.warnings():
        report("warning", {"text": line})
    same = before.get("reference") == frozen.model.reference
    features, why = choose_features(
        wanted.teacher_features,
        Circumstances(
            frozen_student=student.locked == {"image", "text"},
            augmented=wanted.augment != "none",
            student_size=student.preprocess.size,
            teacher_size=frozen.model.preprocess.size,
            rows=len(data),
            seen=steps * wanted.batch_size,
            stored_bytes=frozen.stored_bytes(data, wanted.captions),
            before=str(before.get("features", "")) if same else "",
        ),
    )
    report("note", {"text": f"teacher {frozen.model.name}, {features}: {why}"})
    record = frozen.record(features)
    check_same_teacher(record, before)
    if features == "live":
        return Prepared(frozen.live(dtype), frozen.model.tokens if frozen.texts else None, record)
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    options = default_options(None, wanted.workers, precision, cache=keep_features)
    with first_ahead(world):
        teacher = frozen.stored(
            corpus,
            wanted.split,
            data,
            wanted.captions if change is None else "random",  # the captions are chosen by the change
            processes=world.local_size,
            options=options,
            progress=lambda what, done, total: report("progress", {"what": what, "done": done, "total": total}),
        )
    if change is not None:
        teacher = StoredTeacher(teacher.store.altered(change), teacher.logit_scale)
    return Prepared(teacher, None, record)


def count_captions(data: datasets.Dataset | ShardedSplit) -> int:
    """How many captions a split has; of shards, which would have to be read for it, at least how many."""
    import pyarrow.compute as pc

    if isinstance(data, ShardedSplit):
        return len(data)

    return int(pc.sum(pc.list_value_length(data.with_format("arrow")["captions"][:])).as_py() or 0)


def check_same_teacher(record: dict[str, Any], before: dict[str, Any]) -> None:
    """Refuse to go on with a teacher that has changed under its name. (Another name is the user's decision.)

    Args:
        record: of the teacher as it is now.
        before: of the run that is gone on with; empty where it says nothing.

    Raises:
        ModelError: another fingerprint.
    """
    if before.get("reference") != record["reference"]:
        return
    if before.get("fingerprint") != record["fingerprint"]:
        raise ModelError(
            f"objective.teacher_model: {record['reference']} is not what it was when this run started",
            f"its fingerprint was {str(before.get('fingerprint'))[:12]} and is {record['fingerprint'][:12]} now",
            "name the checkpoint of then (run:NAME@STEP), or start a new run with another --out",
        )
