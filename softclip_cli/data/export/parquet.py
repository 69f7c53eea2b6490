"""Parquet in the layout of the Hub: `data/train-00000-of-00002.parquet` and a card, ready to be uploaded or loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

# Row groups are the unit of reading: small ones let a trainer shuffle.
GROUP_ROWS, GROUP_BYTES = 1000, 4 << 20
READ_ROWS = 50


def write_parquet(
    splits: Mapping[str, datasets.Dataset],
    folder: Path,
    shard_bytes: int,
    name: str,
    advance: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    """Write `data/SPLIT-00000-of-0000N.parquet` and `README.md`.

    The files carry the `datasets` features, so that `datasets.load_dataset(FOLDER)` gives decoded images and class names.

    Args:
        splits: images undecoded.
        folder: an empty folder.
        shard_bytes: a file is ended when it has grown to this.
        name: of the corpus, for the card.
        advance: told of rows that are done.

    Returns:
        for each split: rows, files, bytes.
    """
    (folder / "data").mkdir()
    facts, features = {}, {}
    for split, data in splits.items():
        features[split] = _features(data)
        facts[split] = _write_split(split, data, features[split], folder / "data", shard_bytes, advance)
    (folder / "README.md").write_text(_card(name, features, facts), encoding="utf-8")
    return facts


def _features(data: datasets.Dataset) -> datasets.Features:
    import datasets

    features = data.features.copy()
    features["image"] = datasets.Image()
    return features


def _write_split(
    split: str,
    data: datasets.Dataset,
    features: datasets.Features,
    folder: Path,
    shard_bytes: int,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = features.arrow_schema
    words = [leaf for field in schema for leaf in _leaves(field.name, field.type) if leaf != "image.bytes"]
    paths: list[Path] = []
    writer: pq.ParquetWriter | None = None
    written = 0
    for group in _groups(data, schema, min(GROUP_BYTES, shard_bytes // 4)):
        if writer is None:
            paths.append(folder / f"{split}-{len(paths):05d}.parquet")
            # Images do not compress, and do not repeat.
            writer = pq.ParquetWriter(
                paths[-1], schema, compression=dict.fromkeys(words, "zstd"), use_dictionary=words, write_page_index=True
            )
            written = 0
        writer.write_table(group, row_group_size=group.num_rows)
        written += group.nbytes
        advance(group.num_rows)
        if written >= shard_bytes:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    if not paths:
        paths.append(folder / f"{split}-00000.parquet")
        pq.write_table(pa.Table.from_batches([], schema), paths[0])
    size = 0
    for number, path in enumerate(paths):
        final = path.rename(folder / f"{split}-{number:05d}-of-{len(paths):05d}.parquet")
        size += final.stat().st_size
    return {"rows": len(data), "files": len(paths), "bytes": size}


def _groups(data: datasets.Dataset, schema: pa.Schema, most: int) -> Iterator[pa.Table]:
    """The rows in tables of the size of a row group, of about `most` bytes."""
    import pyarrow as pa

    waiting: list[pa.Table] = []
    for table in data.with_format("arrow").iter(batch_size=READ_ROWS):
        step = max(1, table.num_rows * most // max(1, 2 * table.nbytes))
        for start in range(0, table.num_rows, step):
            waiting.append(table.slice(start, step).cast(schema))
            if sum(t.nbytes for t in waiting) >= most or sum(t.num_rows for t in waiting) >= GROUP_ROWS:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _leaves(name: str, kind: pa.DataType) -> Iterator[str]:
    """The Parquet columns of an Arrow column."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{name}.{field.name}", field.type)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _leaves(f"{name}.list.element", kind.value_type)
    else:
        yield name


def _card(name: str, features: Mapping[str, datasets.Features], facts: Mapping[str, Mapping[str, Any]]) -> str:
    """README.md: which files are which split, and the features. Splits with other columns are a configuration of their own."""
    from datasets import DatasetInfo
    from datasets.info import DatasetInfosDict
    from datasets.splits import SplitDict, SplitInfo
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    groups: dict[str, list[str]] = {}
    for split, columns in features.items():
        like = next((other for other, members in groups.items() if features[members[0]] == columns), None)
        groups.setdefault(like or ("default" if not groups else split), []).append(split)
    infos, configs = {}, {}
    for config, members in groups.items():
        sizes = SplitDict()
        for split in members:
            sizes.add(SplitInfo(split, num_bytes=facts[split]["bytes"], num_examples=facts[split]["rows"]))
        infos[config] = DatasetInfo(config_name=config, features=features[members[0]], splits=sizes)
        configs[config] = {"data_files": [{"split": split, "path": f"data/{split}-*"} for split in members]}
    card = DatasetCardData()
    DatasetInfosDict(infos).to_dataset_card_data(card)
    MetadataConfigs(configs).to_dataset_card_data(card)
    lines = [f"- `{split}`: {fact['rows']:,} images" for split, fact in facts.items()]
    return "\n".join([f"---\n{card.to_yaml()}\n---\n", f"# {name}\n", "Images with captions:\n", *lines, ""])
