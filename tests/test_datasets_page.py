"""docs/datasets.md has the table of the catalogue as it is. Run this file to write it anew."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from softclip_cli.evaluation.catalogue import Entry, catalogue
from softclip_cli.evaluation.layouts import all_layouts

PAGE = Path(__file__).parents[1] / "docs" / "datasets.md"
BEGIN = "<!-- catalogue: written by `python tests/test_datasets_page.py`, which also checks it -->\n"
END = "<!-- end of catalogue -->"


def catalogue_table() -> str:
    """The catalogue in Markdown, a table for each task."""
    parts = []
    for task in dict.fromkeys(entry.task for entry in catalogue().values()):
        rows = [f"**{task}**\n", "| name | what | images | classes | metric | layouts |", "|---|---|---|---|---|---|"]
        for name, entry in catalogue().items():
            if entry.task == task:
                images = f"{entry.sizes[entry.split]:,}" if entry.sizes else "yours"
                classes = f"{entry.classes:,}" if entry.classes else ""
                layouts = ", ".join(entry.layouts)
                rows.append(f"| `{name}` | {entry.title} | {images} | {classes} | {entry.metric} | {layouts} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def split_page() -> tuple[str, str, str]:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    return before + BEGIN, table, END + after


def test_the_table_is_the_catalogue() -> None:
    assert split_page()[1] == catalogue_table(), "run: python tests/test_datasets_page.py"


def test_every_layout_is_explained() -> None:
    explained = set(re.findall(r"^\| `([a-z-]+)` \| .* \| .* \|$", split_page()[2], re.MULTILINE))
    assert explained == set(all_layouts())


def test_the_example_of_an_entry_is_one() -> None:
    block = re.search(r"```toml\n(.*?)```", split_page()[2], re.DOTALL)
    assert block
    for fields in tomllib.loads(block[1]).values():
        entry = Entry.model_validate(fields)
        assert entry.lists is not None and re.fullmatch(str(entry.lists.line), "0001.jpg robin")


if __name__ == "__main__":
    parts = split_page()
    PAGE.write_text(parts[0] + catalogue_table() + parts[2], encoding="utf-8")
    sys.exit(0)
