"""Readers of rows from Arrow: Parquet files and `datasets`, with the features of Hugging Face beside the columns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli.data.sources.places import file_name, open_binary, shown
from softclip_cli.data.sources.readers import BadRow, Reader, Row
from softclip_cli.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

BATCH_ROWS = 64  # rows held at once; they may hold whole images


class ArrowReader(Reader):
    """What Parquet and `datasets` share: an Arrow schema with Hugging Face features, if it has any."""

    def __init__(self, name: str, schema: pa.Schema, features: datasets.Features | None) -> None:
        self.name, self.schema = name, schema
        self.columns = list(schema.names)
        self.features = features

    @abstractmethod
    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yield record batches or tables of a few rows with these columns."""

    def rows(self, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield the rows; the number is the row's, from 1."""
        number = 0
        for batch in self.batches(list(dict.fromkeys(columns))):
            lists = {name: _to_list(batch.column(name)) for name in set(columns)}
            for values in zip(*(lists[name] for name in columns), strict=True):
                number += 1
                yield Row(number, values)

    def kind(self, column: str) -> str:
        """From the features, else from the Arrow type."""
        import datasets
        import pyarrow as pa

        feature = self.features.get(column) if self.features else None
        if isinstance(feature, datasets.Image):
            return "image"
        if isinstance(feature, datasets.ClassLabel):
            return "class"
        kind = self.schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
            return "image"
        if pa.types.is_struct(kind):
            return "image" if {field.name for field in kind} >= {"bytes", "path"} else "other"
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return "text"
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            return "number"
        return "list" if pa.types.is_list(kind) or pa.types.is_large_list(kind) else "other"

    def class_names(self, column: str) -> list[str] | None:
        """The names of a `ClassLabel`."""
        import datasets

        feature = self.features.get(column) if self.features else None
        return list(feature.names) if isinstance(feature, datasets.ClassLabel) and feature.names else None


class ParquetReader(ArrowReader):
    """One Parquet file.

    Args:
        path: the file, or its fsspec address.
        features: Hugging Face features known from elsewhere (the dataset card), for files that carry none.

    Raises:
        DataError: the file is not Parquet or is damaged.
    """

    def __init__(self, path: Path | str, features: datasets.Features | None = None) -> None:
        self.path = path
        with self.open_file() as file:
            schema, self.total = file.schema_arrow, file.metadata.num_rows
        super().__init__(file_name(str(path)), schema, _features_of(schema) or features)

    def open_file(self) -> Any:
        """The file, opened for reading row groups."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # A buffer and no pre-reading: column chunks stream, so that row groups of any size fit in memory.
            place = open_binary(self.path) if isinstance(self.path, str) else self.path
            return pq.ParquetFile(place, buffer_size=1 << 20, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{shown(str(self.path))} is not a readable Parquet file", str(error), "fetch or write it again"
            ) from error

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yield record batches."""
        import pyarrow as pa

        with self.open_file() as file:
            try:
                yield from file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns), use_threads=False)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{shown(str(self.path))} is damaged", str(error), "fetch or write it again") from error


class DatasetReader(ArrowReader):
    """A `datasets.Dataset`; its images stay encoded."""

    def __init__(self, dataset: datasets.Dataset, name: str) -> None:
        import datasets

        self.dataset = dataset
        for column, feature in dataset.features.items():
            if isinstance(feature, datasets.Image):
                self.dataset = self.dataset.cast_column(column, datasets.Image(decode=False))
        super().__init__(name, self.dataset.features.arrow_schema, self.dataset.features)
        self.total = len(dataset)

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yield tables."""
        import pyarrow as pa

        try:
            yield from self.dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=BATCH_ROWS)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.name} is damaged", str(error), "save the dataset again") from error


def _to_list(column: Any) -> list[Any]:
    """The values of an Arrow column; text that is not valid UTF-8 (Parquet does not check it) has surrogate escapes."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        kind = column.type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return [None if cell.values is None else _to_list(cell.values) for cell in _scalars(column)]
        if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
            raise DataError(
                "text that is not valid UTF-8 in a column of structures", str(kind), "write it again"
            ) from None
        wide = pa.large_binary() if pa.types.is_large_string(kind) else pa.binary()
        return [
            None if data is None else data.decode("utf-8", "surrogateescape") for data in column.cast(wide).to_pylist()
        ]


def _scalars(column: Any) -> Iterator[Any]:
    for place in range(len(column)):
        yield column[place]


def _features_of(schema: pa.Schema) -> datasets.Features | None:
    """The features that `datasets` writes into the metadata of Parquet files."""
    if not schema.metadata or b"huggingface" not in schema.metadata:
        return None
    import datasets

    try:
        return datasets.Features.from_arrow_schema(schema)
    except Exception:  # metadata of another version: the Arrow types still tell enough
        return None
