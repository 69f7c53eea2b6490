"""The download of a list: shard by shard, each one whole or not there, so that the same command goes on where it stopped."""

from __future__ import annotations

import asyncio
import errno
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from softclip_cli import __version__
from softclip_cli.data.corpus import hash_file, write_json
from softclip_cli.data.download.fetch import TRANSIENT, Fetched, Fetcher, FetchOptions, import_aiohttp
from softclip_cli.data.download.shards import Shard, ShardWriter
from softclip_cli.data.download.url_list import Entry, UrlList, open_list
from softclip_cli.data.sources.download_stats import read_stats
from softclip_cli.data.sources.tar_stream import read_tar
from softclip_cli.errors import DataError, HostError, Interrupted, UsageError

HOPELESS_AFTER = 1000  # addresses without a single image: it is not the servers


@dataclass(frozen=True)
class DownloadOptions:
    """What to fetch, and how.

    Attributes:
        url_column, caption_columns: columns of the list; guessed if left out.
        encoding: of a text list.
        shard_size: addresses a shard.
        limit: at most so many addresses of the list.
        retry_failed: fetch again what failed in shards that are done, as far as the failure may have passed.
        fetch: timeouts, further tries, connections.

    Raises:
        UsageError: values that make no sense, all named at once.
    """

    url_column: str | None = None
    caption_columns: tuple[str, ...] = ()
    encoding: str = "utf-8"
    shard_size: int = 10_000
    limit: int | None = None
    retry_failed: bool = False
    fetch: FetchOptions = field(default_factory=FetchOptions)

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.shard_size <= 1_000_000:
            problems.append(f"--shard-size {self.shard_size}: must be from 1 to 1000000")
        if self.limit is not None and self.limit < 1:
            problems.append(f"--limit {self.limit}: must be at least 1")
        if not 1 <= self.fetch.connections <= 4096:
            problems.append(f"--connections {self.fetch.connections}: must be from 1 to 4096")
        if not self.fetch.timeout > 0:
            problems.append(f"--timeout {self.fetch.timeout:g}: must be more than 0 seconds")
        if not 0 <= self.fetch.retries <= 20:
            problems.append(f"--retries {self.fetch.retries}: must be from 0 to 20")
        if problems:
            raise UsageError("unusable options", "\n       ".join(problems), "see softclip data download --help")


Progress = Callable[[int, int], None]


def download(
    source: Path,
    out: Path,
    options: DownloadOptions,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Fetch the images of a list into tars that `prepare` reads.

    Args:
        source: the list.
        out: the folder of the tars; one of an earlier run of the same list is gone on with.
        options: how.
        progress: called with (addresses done, addresses in all; 0 where that is not known).
        note: told how the list was read.

    Returns:
        `asked`, `downloaded`, `causes` and so on over all shards, and how many shards were done `before`.

    Raises:
        UsageError: a wrong column, or `out` belongs to another list.
        DataError: the list cannot be read, or no address gives an image.
        HostError: a package is missing, or `out` cannot be written.
        Interrupted: stopped by Ctrl-C; the shards that are whole stay.
    """
    import_aiohttp()
    urls = open_list(source, options.url_column, options.caption_columns, options.encoding)
    for line in urls.notes if note else ():
        note(line)  # type: ignore[misc]
    try:
        _claim(source, out, urls, options)
        return _Download(urls, out, options, progress).run()
    except OSError as error:
        hint = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "choose another folder"
        raise HostError(f"{out} cannot be written", str(error), f"{hint}; the same command goes on") from error


def _claim(source: Path, out: Path, urls: UrlList, options: DownloadOptions) -> None:
    """See that the folder is free, or belongs to the same list cut into the same shards."""
    claim = {
        "list": str(source.resolve()), "sha256": hash_file(source), "url_column": urls.url,
        "caption_columns": urls.captions, "shard_size": options.shard_size,
    }  # fmt: skip
    file = out / "download.json"
    if file.is_file():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        other = [name for name in claim if name != "list" and before.get(name) != claim[name]]
        if other:
            raise UsageError(
                f"{out} holds the download of another list",
                "different: " + ", ".join(f"{name} ({before.get(name)} there)" for name in other),
                "choose another folder, or give the same list and options",
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} exists and is not a download", "softclip never writes among other files", "choose another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, claim | {"softclip": __version__})


class _Download:
    def __init__(self, urls: UrlList, out: Path, options: DownloadOptions, progress: Progress | None) -> None:
        self.urls, self.out, self.options, self.progress = urls, out, options, progress
        self.tried = self.fetched = self.done = self.before = self.shards = 0
        self.causes: Counter[str] = Counter()
        total = urls.reader.total or 0
        self.total = min(total, options.limit) if options.limit and total else total

    def run(self) -> dict[str, Any]:
        try:
            with ThreadPoolExecutor(min(self.options.fetch.connections, 256)) as resolvers:
                asyncio.run(self._all(resolvers))
        except KeyboardInterrupt:
            raise Interrupted(
                "stopped", f"{self.shards:,} shards in {self.out} are whole", "the same command goes on from there"
            ) from None
        if not self.shards:
            raise DataError(f"{self.urls.reader.name} lists no addresses", hint="check the file")
        stats = read_stats(str(self.out), [str(Shard(self.out, number).tar) for number in range(self.shards)])
        assert stats is not None
        return {"out": str(self.out), "before": self.before, **stats.report()}

    async def _all(self, resolvers: ThreadPoolExecutor) -> None:
        # Names are looked up in threads; the usual few of them would be the bottleneck.
        asyncio.get_running_loop().set_default_executor(resolvers)
        entries = islice(self.urls.entries(), self.options.limit)
        async with Fetcher(self.options.fetch) as fetcher:
            while chunk := list(islice(entries, self.options.shard_size)):
                shard = Shard(self.out, self.shards)
                stats = shard.done()
                if stats is None or stats.get("count") != len(chunk):
                    await self._shard(fetcher, shard, chunk)
                else:
                    self.before += 1
                    again = self._to_retry(shard, chunk) if self.options.retry_failed else []
                    self.done += len(chunk) - len(again)
                    if again:
                        await self._shard(fetcher, shard, again, keep=True)
                self.shards += 1
        if self.shards > self.before and self.tried and not self.fetched:
            raise self._hopeless()

    def _to_retry(self, shard: Shard, chunk: list[Entry]) -> list[Entry]:
        failed = {
            row["key"]
            for row in shard.rows()
            if row["status"] != "success" and str(row["error_message"]).partition(":")[0] in TRANSIENT
        }
        return [entry for entry in chunk if shard.key(entry) in failed]

    async def _shard(self, fetcher: Fetcher, shard: Shard, chunk: list[Entry], keep: bool = False) -> None:
        writer = ShardWriter(shard)
        try:
            if keep:
                _take_over(shard, writer, {shard.key(entry) for entry in chunk})
            supply = iter(chunk)
            workers = [
                self._work(fetcher, writer, supply) for _ in range(min(self.options.fetch.connections, len(chunk)))
            ]
            async with asyncio.TaskGroup() as group:
                for worker in workers:
                    group.create_task(worker)
            writer.finish()
        except BaseException as error:
            writer.abort()
            if isinstance(error, BaseExceptionGroup):  # the first of them says enough
                raise error.exceptions[0] from error
            raise

    async def _work(self, fetcher: Fetcher, writer: ShardWriter, supply: Iterator[Entry]) -> None:
        for entry in supply:
            found = Fetched(cause=entry.problem) if entry.problem else await fetcher.fetch(entry.url)
            writer.add(entry, found)
            self.tried += 1
            self.done += 1
            if found.data is None:
                self.causes[found.cause] += 1
            else:
                self.fetched += 1
            if self.tried >= HOPELESS_AFTER and not self.fetched and not self.before:
                raise self._hopeless()
            if self.progress:
                self.progress(self.done, self.total)

    def _hopeless(self) -> DataError:
        causes = ", ".join(f"{count:,} {cause}" for cause, count in self.causes.most_common(4))
        return DataError(
            f"none of {self.tried:,} addresses gave an image",
            causes,
            "check the network, the proxy, and the column of addresses",
        )


def _take_over(shard: Shard, writer: ShardWriter, again: set[str]) -> None:
    """Copy what an earlier run fetched, and the rows of what failed for good."""
    for row in shard.rows():
        if row["key"] not in again:
            writer.copy_row(row)
            if row["status"] != "success":
                writer.causes[str(row["error_message"]).partition(":")[0]] += 1
    with shard.tar.open("rb") as stream:
        for member in read_tar(stream, lambda name: 1 << 40):
            writer.copy(member)
