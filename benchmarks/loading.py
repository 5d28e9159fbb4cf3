"""How fast vectors are stored: beside SQLAlchemy's ORM, and beside COPY with nothing round it.

    python -m benchmarks.loading
    python -m benchmarks.loading --rows 10000 --rounds 1 --out results

Into empty tables of the same definition go the same rows: by ``EmbeddingSpace.write``, a transaction a batch, as runs
and imports do; by the ORM's ``add_all`` and ``commit``, a transaction a batch; and by a single binary COPY of
everything in one transaction. The ORM gets some of the rows only, for it would take minutes. The ways take turns, and
of each the best round counts: whatever else the machine does can only make one slower.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import Table, func, select, text
from sqlalchemy.orm import Session, registry

from abo_pipeline.store import Store
from abo_pipeline.store.database import transaction
from abo_pipeline.store.schema import create_embeddings_table, embeddings_table
from abo_pipeline.store.spaces import Embedded, EmbeddingSpace
from benchmarks.bars import CONSOLE, Bar, print_bars, print_table, save
from benchmarks.stores import NamedEncoder, Pictures, bare_connection, fresh_store, open_space, write_catalogue
from benchmarks.vectors import Clip

BATCHES = (64, 1_000, 10_000)
"""Rows a transaction: a run's own number, and larger ones."""

OVER_ORM, OF_COPY = 10.0, 0.8


class Loading:
    """A store with a catalogue, and an empty table for each way to fill one."""

    def __init__(self, store: Store, pictures: Pictures, orm_rows: int) -> None:
        self.store = store
        self.pictures = pictures
        self._some = pictures.first(orm_rows)
        self.fingerprint = NamedEncoder(0).fingerprint
        dimension = pictures.vectors.shape[1]
        self.space: EmbeddingSpace = open_space(store, "ours", dimension)
        self.orm_table = self._table("orm", dimension)
        self.copied = self._table("copied", dimension)
        # A class that is a row of the table, as an application would have one.
        self.row = type("Row", (), {})
        registry().map_imperatively(self.row, self.orm_table)

    def ours(self, batch: int) -> float:
        """Rows a second of ``EmbeddingSpace.write``."""
        batches = list(self.pictures.batches(batch))
        return self._rate(self.space.table, len(self.pictures.ids), lambda: self._write(batches))

    def orm(self, batch: int) -> float:
        """Rows a second of the ORM."""
        batches = list(self._some.batches(batch))
        return self._rate(self.orm_table, len(self._some.ids), lambda: self._add_all(batches))

    def copy(self) -> float:
        """Rows a second of a bare COPY."""
        with bare_connection(self.store.engine) as connection:

            def load() -> None:
                with (
                    connection.transaction(),
                    connection.cursor() as cursor,
                    cursor.copy(f"COPY {self.copied.name} FROM STDIN (FORMAT BINARY)") as copy,
                ):
                    copy.set_types(["text", "int8", "text", "text", "vector"])
                    for name, key, vector in zip(
                        self.pictures.ids, self.pictures.keys, self.pictures.vectors, strict=True
                    ):
                        copy.write_row((name, key, "d1", self.fingerprint, vector))

            return self._rate(self.copied, len(self.pictures.ids), load)

    def _write(self, batches: Sequence[Sequence[Embedded]]) -> None:
        for images in batches:
            self.space.write(images, [])

    def _add_all(self, batches: Sequence[Sequence[Embedded]]) -> None:
        with Session(self.store.engine) as session:
            for images in batches:
                rows = []
                for image in images:
                    row = self.row()
                    row.image_id, row.sample_key, row.digest = image.image_id, image.sample_key, image.digest
                    row.fingerprint, row.embedding = self.fingerprint, image.vector
                    rows.append(row)
                session.add_all(rows)
                session.commit()

    def _rate(self, table: Table, rows: int, load: Callable[[], None]) -> float:
        with transaction(self.store.engine) as connection:
            connection.execute(text(f"TRUNCATE {table.name}"))
        with bare_connection(self.store.engine) as connection:
            # So that each way pays for its own writing, and for its own only.
            connection.execute("CHECKPOINT")
        started = time.perf_counter()
        load()
        seconds = time.perf_counter() - started
        with transaction(self.store.engine) as connection:
            if connection.scalar(select(func.count()).select_from(table)) != rows:
                raise RuntimeError(f"{table.name} does not hold what was loaded")
        return rows / seconds

    def _table(self, name: str, dimension: int) -> Table:
        table = embeddings_table(name, dimension)
        with transaction(self.store.engine) as connection:
            create_embeddings_table(connection, table)
        return table


def measure(loading: Loading, batches: Sequence[int], rounds: int) -> dict[str, list[float]]:
    """Rows a second of each way, by name, one number a round."""
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        rates.setdefault("copy", []).append(loading.copy())
        for batch in batches:
            rates.setdefault(f"ours {batch}", []).append(loading.ours(batch))
            rates.setdefault(f"orm {batch}", []).append(loading.orm(batch))
    return rates


def ratio(rates: dict[str, list[float]], one: str, other: str) -> float:
    """How many times as fast one way is as another."""
    return max(rates[one]) / max(rates[other])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table and what holds of the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="vectors to store (default %(default)s)")
    parser.add_argument("--orm-rows", type=int, default=5_000, help="of them by the ORM (default %(default)s)")
    parser.add_argument("--dimension", type=int, default=512, help="of the vectors (default %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="rows a transaction (default 64 …)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each way (default %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for the numbers as JSON")
    given = parser.parse_args(arguments)
    CONSOLE.print(f"Drawing {given.rows:,} vectors of {given.dimension} dimensions.")
    pictures = Pictures.drawn(given.rows, Clip(given.dimension))
    with fresh_store() as store:
        write_catalogue(store, pictures)
        rates = measure(Loading(store, pictures, given.orm_rows), given.batches, given.rounds)
    largest = max(given.batches)
    bars = [
        Bar(
            f"stored, times the ORM's rate, {largest:,} rows a transaction",
            ratio(rates, f"ours {largest}", f"orm {largest}"),
            OVER_ORM,
        ),
        Bar(
            f"stored, times the rate of a bare COPY, {largest:,} rows a transaction",
            ratio(rates, f"ours {largest}", "copy"),
            OF_COPY,
        ),
    ]
    print_table(
        f"{given.rows:,} vectors of {given.dimension} dimensions",
        ("rows a transaction", "ours, rows/s", "ORM, rows/s", "COPY, rows/s", "ours : ORM", "ours : COPY"),
        [
            (
                f"{batch:,}",
                f"{max(rates[f'ours {batch}']):,.0f}",
                f"{max(rates[f'orm {batch}']):,.0f}",
                f"{max(rates['copy']):,.0f}",
                f"{ratio(rates, f'ours {batch}', f'orm {batch}'):.1f}",
                f"{ratio(rates, f'ours {batch}', 'copy'):.2f}",
            )
            for batch in given.batches
        ],
    )
    print_bars(bars)
    if given.out:
        save(
            given.out / "loading.json", bars, {"rows": given.rows, "dimension": given.dimension, "rows_a_second": rates}
        )
    return 0


if __name__ == "__main__":
    # What was started is stopped also when somebody ends this program other than by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
