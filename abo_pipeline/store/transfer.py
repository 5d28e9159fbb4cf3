"""A space's rows as they leave a database, and what the catalogue says of rows that come from another one.

Rows leave in the catalogue's order, as one moment has them, without ever being in memory at once. How they come in is
``EmbeddingSpace.adopt``; the file between is for ``portable``.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import polars as pl
from sqlalchemy import Connection, Text, any_, bindparam, select, text
from sqlalchemy.dialects.postgresql import ARRAY

from abo_pipeline.store import Store
from abo_pipeline.store.database import transaction
from abo_pipeline.store.schema import Image
from abo_pipeline.store.spaces import EmbeddingSpace

Row = tuple[Any, ...]
"""image_id, path, sample_key, digest, fingerprint, vector (dimension,) float32."""

_COLUMN_TYPES = ("text", "text", "int8", "text", "text", "vector")


@contextmanager
def embedded_rows(space: EmbeddingSpace) -> Iterator[tuple[int, Iterator[Row]]]:
    """How many images of the catalogue are embedded, and their rows in the catalogue's order, for one block.

    Both are of the same moment, whatever is written meanwhile. An image whose file has changed since counts as not
    embedded.

    Raises:
        StoreError: the database does not answer, or goes away in the middle.
    """
    # The count and the rows are two statements, and would be of two moments otherwise.
    with transaction(space.engine.execution_options(isolation_level="REPEATABLE READ")) as connection:
        embedded = f"FROM {space.table.name} e JOIN images i USING (image_id) WHERE i.digest = e.digest"
        count = connection.scalar(text(f"SELECT count(*) {embedded}")) or 0
        # A COPY that was left in the middle is ended here: the transaction could not be.
        with closing(_copied(connection, embedded)) as rows:
            yield count, rows


def _copied(connection: Connection, embedded: str) -> Generator[Row, None, None]:
    """By binary COPY, which hands rows over as they are asked for; in order of bytes where two keys are the same."""
    query = (
        f"SELECT image_id, i.path, e.sample_key, e.digest, e.fingerprint, e.embedding {embedded} "
        'ORDER BY e.sample_key, image_id COLLATE "C"'
    )
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT BINARY)") as copy:
        copy.set_types(_COLUMN_TYPES)
        for *known, vector in copy.rows():
            yield (*known, vector.to_numpy())


def catalogue_images(store: Store, image_ids: Sequence[str]) -> pl.DataFrame:
    """Those of some images which are in the catalogue: image_id, path and digest."""
    these = Image.image_id == any_(bindparam("ids", type_=ARRAY(Text)))
    with transaction(store.engine) as connection:
        rows = connection.execute(select(Image.image_id, Image.path, Image.digest).where(these), {"ids": [*image_ids]})
        found = [tuple(row) for row in rows]
    schema = {"image_id": pl.String, "path": pl.String, "digest": pl.String}
    return pl.DataFrame(found, schema=schema, orient="row")
