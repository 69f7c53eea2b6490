"""From any source to a prepared corpus: a first pass over the records, and a second one where duplicates or leaks are looked for."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

from softclip_cli.data.corpus import Corpus, check_output
from softclip_cli.data.first_pass import FirstPass, Progress, Unusable
from softclip_cli.data.position import SourceChanged, fingerprint
from softclip_cli.data.prepare_options import PrepareOptions, shaping_options
from softclip_cli.data.settle import Protected, Settling, Stage, settle
from softclip_cli.data.sources import open_source
from softclip_cli.data.sources.base import Source
from softclip_cli.data.workplace import Workplace
from softclip_cli.errors import DataError, HostError, Interrupted, UsageError
from softclip_cli.resources import usable_cores

__all__ = ["PrepareOptions", "prepare", "prepare_source"]

Note = Callable[[str], None]


def prepare(
    source: Path | str,
    out: Path,
    options: PrepareOptions,
    progress: Progress | None = None,
    note: Note | None = None,
    against: Sequence[Protected] = (),
) -> Corpus:
    """Prepare a corpus, or go on with one that was cut off.

    Args:
        source: a path, or a name on the Hub.
        out: the folder to make; it appears when the corpus is whole, and never in part.
        options: how.
        progress: called with (records done, records in all; 0 where that is not known).
        note: told, in a line for people, whether the run goes on from an earlier one, and what is done after the reading.
        against: evaluation sets; training images that are near-duplicates of theirs are left out.

    Raises:
        UsageError: an option or column that does not fit the source.
        DataError: the source cannot be read, too many of its records are broken, or none is left; `out` is in the way.
        HostError: the disk is full, or `out` cannot be written.
        Interrupted: stopped by Ctrl-C; the same call goes on from there.
    """
    return prepare_source(open_source(str(source), options), out, options, progress, note, against)


def prepare_source(
    source: Source,
    out: Path,
    options: PrepareOptions,
    progress: Progress | None = None,
    note: Note | None = None,
    against: Sequence[Protected] = (),
) -> Corpus:
    """As `prepare`, from a source that is open already (a command prints its reason and notes first)."""
    out, say = Path(out), note or (lambda text: None)
    if options.dedup == "keep" and not against:
        return _first_pass(source, out, options, progress, say)
    check_output(out, options.overwrite)  # before hours of work
    _refuse_own_source(source, out)
    stage = Stage(out, fingerprint(source, shaping_options(options)))
    if options.resume == "auto" and stage.whole:
        say("the records were read by an earlier run")
    else:
        stage.remove()
        _first_pass(source, stage.path, options, progress, say)
        stage.mark()
    settings = Settling(options.dedup, tuple(against), options.workers or usable_cores(), options.overwrite)
    return settle(stage, out, settings, progress, note)


def _first_pass(source: Source, out: Path, options: PrepareOptions, progress: Progress | None, say: Note) -> Corpus:
    _refuse_own_source(source, out)
    if options.caption_templates and source.class_names is None:
        raise UsageError("--caption-template needs class names", f"{source.path} has no labels", "see --label-column")
    place = Workplace(out)
    try:
        with place.locked():
            _prepare_in(place, source, options, progress, say)
    except KeyboardInterrupt:
        before = place.read()
        if before is None:
            raise
        raise Interrupted(
            f"stopped; the first {before['read']:,} records are safe",
            f"{place.path} holds them",
            "the same command goes on from there; with --resume never it starts anew",
        ) from None
    except OSError as error:
        again = "then the same command goes on where it stopped" if place.saved else "or choose another output folder"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            smaller = "" if place.saved else "; --short-side 256 makes it smaller"
            raise HostError(f"no space left for {out}", str(error), f"free some, {again}{smaller}") from error
        raise HostError(f"{out} cannot be written", str(error), f"check the disk, {again}") from error
    return Corpus.open(out)


def _prepare_in(
    place: Workplace, source: Source, options: PrepareOptions, progress: Progress | None, say: Note
) -> None:
    """Prepare in the workplace, which stays only where the same command can go on in it."""
    shaping = {name: value for name, value in shaping_options(options).items() if name != "max_dropped"}
    digest = fingerprint(source, shaping)
    before = place.read() if options.resume == "auto" else None
    if before is not None and before.get("fingerprint") != digest:
        say("an earlier run was cut off, but the source or the options are others now: starting anew")
        before = None
    if before is not None and place.published:
        place.remove()
        return
    try:
        check_output(place.out, options.overwrite)
    except DataError:
        if not place.saved:
            place.remove()
        raise
    try:
        if before is not None:
            say(f"going on from record {before['read']:,}, where an earlier run was cut off")
            try:
                FirstPass(source, options, place, digest, progress).run(before)
            except SourceChanged:
                say("no: the source has changed since; starting anew")
                before = None
        if before is None:
            place.restart()
            FirstPass(source, options, place, digest, progress).run()
    except BaseException as error:
        # A full disk or a lost connection is no reason to begin from the start. A verdict on the data is final.
        if isinstance(error, Unusable) or not place.saved:
            place.remove()
        raise
    place.publish()


def _refuse_own_source(source: Source, out: Path) -> None:
    place = Path(source.path)
    if place.exists() and (out.resolve() == place.resolve() or out.resolve() in place.resolve().parents):
        raise UsageError(f"{place} lies in the output folder {out}", hint="choose an output folder outside the source")
