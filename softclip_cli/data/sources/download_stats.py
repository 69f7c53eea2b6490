"""The statistics that img2dataset, and `softclip data download`, leave beside each tar: `00000_stats.json`."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softclip_cli.data.sources.places import expand, file_name, is_address, is_pattern, open_binary
from softclip_cli.errors import SoftclipError

SUFFIX = "_stats.json"
CAUSES_KEPT = 50  # img2dataset keeps each wording of an error apart; the rare ones are summed
MAX_BYTES = 16 << 20


@dataclass
class DownloadStats:
    """How a download went, summed over the shards that say it.

    Attributes:
        shards: how many shards have statistics.
        without: names of the tars that have none.
        asked, downloaded, failed_to_download, failed_to_resize: numbers of addresses.
        causes: how often each error occurred.
        by_tar: images in each tar.
    """

    shards: int = 0
    without: list[str] = field(default_factory=list)
    asked: int = 0
    downloaded: int = 0
    failed_to_download: int = 0
    failed_to_resize: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    by_tar: dict[str, int] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """What corpus.json keeps."""
        kept = dict(self.causes.most_common(CAUSES_KEPT))
        rest = sum(self.causes.values()) - sum(kept.values())
        return {
            "shards": self.shards, "shards_without_statistics": len(self.without), "asked": self.asked,
            "downloaded": self.downloaded, "failed_to_download": self.failed_to_download,
            "failed_to_resize": self.failed_to_resize, "causes": kept | ({"others": rest} if rest else {}),
        }  # fmt: skip

    def notes(self) -> list[str]:
        """The same for people."""
        share = self.downloaded / max(1, self.asked)
        lines = [f"download: {self.downloaded:,} of {self.asked:,} addresses gave an image ({share:.1%})"]
        if self.causes:
            top = ", ".join(f"{count:,} {cause}" for cause, count in self.causes.most_common(5))
            lines.append(f"download failed: {top}{', ...' if len(self.causes) > 5 else ''}")
        if self.without:
            names = ", ".join(self.without[:5]) + (", ..." if len(self.without) > 5 else "")
            lines.append(f"tars without statistics, perhaps of a download that was cut short: {names}")
        return lines


def read_stats(source: str, tars: Sequence[str]) -> DownloadStats | None:
    """Sum the statistics that lie beside the tars; None where there are none."""
    listed: set[str] = set()
    if is_address(source) and not is_pattern(source) and source not in tars:
        with contextlib.suppress(SoftclipError):
            listed = set(expand(source, (SUFFIX,)))
    found = DownloadStats()
    for tar in tars:
        place = tar[: tar.lower().rfind(".t")] + SUFFIX
        present = place in listed if is_address(tar) else Path(place).is_file()
        document = _load(place) if present else None
        if document is None:
            found.without.append(file_name(tar))
            continue
        found.shards += 1
        found.asked += _number(document, "count")
        found.downloaded += _number(document, "successes")
        found.failed_to_download += _number(document, "failed_to_download")
        found.failed_to_resize += _number(document, "failed_to_resize")
        found.by_tar[tar] = _number(document, "successes")
        status = document.get("status_dict")
        causes: dict[str, Any] = status if isinstance(status, dict) else {}
        for cause in causes:
            if cause != "success":
                found.causes[" ".join(str(cause).split())[:200]] += _number(causes, cause)
    return found if found.shards else None


def _load(place: str) -> dict[str, Any] | None:
    try:
        with open_binary(place) as stream:
            document = json.loads(stream.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError, SoftclipError):
        return None
    return document if isinstance(document, dict) and "successes" in document else None


def _number(document: dict[str, Any], name: str) -> int:
    value = document.get(name)
    return value if isinstance(value, int) and value > 0 else 0
