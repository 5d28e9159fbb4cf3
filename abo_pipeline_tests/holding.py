"""The middle of a run, held for as long as a test needs it: no test has to hit upon it in time."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError


@contextmanager
def held_vector(engine: Engine, table: str, image_id: str) -> Iterator[None]:
    """For the block, keep everybody from storing an image's vector: a run that comes to its batch waits there.

    What the run committed before stays. It is done by storing one in a transaction that is given up afterwards, or with
    the server if that dies in the block.
    """
    with engine.connect() as connection:
        # The type modifier of a vector is its dimension.
        column = "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attname = 'embedding'"
        dimension = connection.scalar(text(column), {"table": table})
        row = text(f"INSERT INTO {table} VALUES (:image, 0, '', '', array_fill(1, ARRAY[{dimension}])::vector)")
        connection.execute(row, {"image": image_id})
        yield
        with suppress(DBAPIError):
            connection.rollback()


def waiting_sessions(engine: Engine) -> int:
    """How many connections to a database wait for somebody else's transaction."""
    query = "SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_stat_activity USING (pid) "
    with engine.connect() as connection:
        return connection.scalar(text(query + "WHERE NOT granted AND datname = current_database()")) or 0
