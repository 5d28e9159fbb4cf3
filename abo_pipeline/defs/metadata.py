"""How numbers and frames are shown in Dagster's UI. What they are is for the assets."""

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import polars as pl


def column_schema(types: Mapping[str, object], meanings: Mapping[str, str | None]) -> dg.TableSchema:
    """The columns of a frame or a table, each with its type and meaning."""
    return dg.TableSchema([dg.TableColumn(name, str(kind), description=meanings[name]) for name, kind in types.items()])


def preview(frame: pl.DataFrame, rows: int = 10) -> dg.TableMetadataValue | dg.MarkdownMetadataValue:
    """The first rows."""
    return table(frame.head(rows).to_dicts())


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue | dg.MarkdownMetadataValue:
    """Rows of alike keys as a table; a table must have a row for its columns to be known."""
    if not rows:
        return dg.MetadataValue.md("*none*")
    return dg.MetadataValue.table([dg.TableRecord({key: _cell(value) for key, value in row.items()}) for row in rows])


def picture(data_url: str, words: str) -> dg.MarkdownMetadataValue:
    """A picture that the UI shows in place. The words are data: nothing in them ends the description early."""
    described = re.sub(r"([\\\[\]])", r"\\\1", " ".join(words.split()))
    return dg.MetadataValue.md(f"![{described}]({data_url})")


def _cell(value: Any) -> str | int | float | bool | None:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return value.isoformat() if isinstance(value, dt.datetime | dt.date) else str(value)
