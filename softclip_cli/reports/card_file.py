"""A model card on the disk: what softclip writes in it stands between two marks, and what a person writes stays.

The YAML header is shared: softclip renews the keys that it knows better (`OWN`), and keeps all others, a licence among them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softclip_cli.errors import DataError
from softclip_cli.reports.page import write_text

BEGIN = "<!-- softclip writes from here (%s) to the next such mark anew; write before or behind -->"
END = "<!-- softclip: end -->"
WRITTEN = re.compile(re.escape(BEGIN).replace("%s", "([0-9a-f]{16})") + r"\n(.*?)\n" + re.escape(END), re.DOTALL)
HEADER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)
OWN = ("library_name", "pipeline_tag", "model-index", "base_model")
LICENCE = ("license", "license_name", "license_link")


class EditedByHand(DataError):
    """A card whose generated part a person has changed, or that softclip did not write."""


def compose(header: Mapping[str, Any], body: str, before: str | None, *, overwrite: bool = False) -> str:
    """The text of a card.

    Args:
        header: its metadata.
        body: the part that softclip writes.
        before: the card as it is on the disk; None where there is none.
        overwrite: do not keep what was changed within the generated part (or all, where there are no marks).

    Raises:
        EditedByHand: `before` is not as softclip wrote it, and `overwrite` is not given.
    """
    body = body.strip()
    ours = f"{BEGIN % _mark(body)}\n{body}\n{END}"
    found = WRITTEN.search(before) if before is not None else None
    if before is None or (found is None and overwrite):
        return f"---\n{_yaml(header)}\n---\n\n{ours}\n"
    if found is None:
        raise EditedByHand("it has no part that is marked as softclip's")
    if found[1] != _mark(found[2]) and not overwrite:
        raise EditedByHand("text was changed between softclip's marks")
    top = HEADER.match(before)
    merged = _merged(header, _read(top[1]) if top else {})
    rest = before[top.end() : found.start()].strip("\n") if top else before[: found.start()].strip("\n")
    behind = before[found.end() :].strip("\n")
    return "\n\n".join(part for part in (f"---\n{_yaml(merged)}\n---", rest, ours, behind) if part) + "\n"


def write_card(path: Path, header: Mapping[str, Any], body: str, *, overwrite: bool = False) -> Path:
    """Write a card, or renew softclip's part of the one that is there.

    Raises:
        EditedByHand: softclip's part was changed by hand; says what to do.
        HostError: the file cannot be written.
    """
    try:
        before = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        before = None
    except (OSError, UnicodeDecodeError) as error:
        raise EditedByHand(f"{path} is left as it is", f"it cannot be read ({error})", "remove it") from None
    try:
        return write_text(path, compose(header, body, before, overwrite=overwrite))
    except EditedByHand as error:
        raise EditedByHand(
            f"{path} is left as it is: {error.what}",
            "softclip does not write over what a person wrote",
            "put your text before or behind the marks, then softclip runs card NAME --overwrite",
        ) from None


def _mark(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _merged(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in old.items() if key not in (*OWN, *LICENCE, *new)}
    tags = [*(new.get("tags") or []), *(tag for tag in old.get("tags") or [] if tag not in (new.get("tags") or []))]
    licence = new
    if new.get("license_name") == "unknown" and old.get("license"):
        licence = old
    merged = {key: value for key, value in new.items() if key not in LICENCE}
    merged |= {key: licence[key] for key in LICENCE if key in licence}
    return {**merged, "tags": tags, **kept}


def _read(text: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        raise EditedByHand("its header is no YAML") from None
    if not isinstance(found, dict):
        raise EditedByHand("its header is no YAML mapping")
    return found


def _yaml(header: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True, width=1000).strip()
