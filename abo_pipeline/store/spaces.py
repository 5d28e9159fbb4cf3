"""One embedding space: its vectors and its failures, and the account of both against the catalogue.

Every kept image is, in a space, exactly one of embedded, failed or pending. Rows say which, so what a run has to do,
what it did, and whether all is accounted for are queries here. Searching is in ``nearest``, indexes are in ``indexes``.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sqlalchemy import BigInteger, Connection, Engine, Table, TextClause, bindparam, func, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert

from abo_pipeline.encoder import Encoder
from abo_pipeline.errors import StoreError
from abo_pipeline.sampling import KEY_BITS, LAST_KEY
from abo_pipeline.store.database import transaction, translated
from abo_pipeline.store.merge import copy, merge
from abo_pipeline.store.schema import Failure, Image, Space, embeddings_table

NORM_TOLERANCE = 1e-3
"""How far from 1 the length of a vector may be."""

_STRETCH_BITS = KEY_BITS - 8
"""Whoever writes of an image locks its stretch of the keys, one of 256."""

_WRITERS_NAMESPACE = 0x41424F57
_POLL_SECONDS = 0.2

_EMBEDDING_COLUMNS = ("image_id", "sample_key", "digest", "fingerprint", "embedding")


@dataclass(frozen=True)
class Embedded:
    """An image and its vector."""

    image_id: str
    sample_key: int
    digest: str
    vector: NDArray[np.float32]


@dataclass(frozen=True)
class Failed:
    """An image that could not be embedded: at which stage (read, decode, encode), and why."""

    image_id: str
    sample_key: int
    digest: str
    stage: str
    error_type: str
    message: str


@dataclass(frozen=True)
class Adopted:
    """What became of vectors that were made elsewhere, in images.

    Attributes:
        accepted: stored.
        unchanged: embedded here already, from the very same bytes; left as they are.
        unknown: not in this catalogue; left out.
        other_bytes: in this catalogue, with a file of other content; left out.
    """

    accepted: int = 0
    unchanged: int = 0
    unknown: int = 0
    other_bytes: int = 0

    def __add__(self, other: "Adopted") -> "Adopted":
        return Adopted(
            self.accepted + other.accepted,
            self.unchanged + other.unchanged,
            self.unknown + other.unknown,
            self.other_bytes + other.other_bytes,
        )


@dataclass(frozen=True)
class Reason:
    """Why images failed: so many at the same stage with the same type of error, and an example."""

    stage: str
    error: str
    images: int
    example: str


@dataclass(frozen=True)
class FailedImage:
    """An image that failed, as a person wants to look at it."""

    image_id: str
    path: str
    stage: str
    error: str
    message: str
    failed_at: datetime


@dataclass(frozen=True)
class Account:
    """How many images of the catalogue are kept, embedded, failed and pending, counted apart from one another.

    Attributes:
        departed: vectors and failures whose image is no longer in the catalogue.
    """

    kept: int
    embedded: int
    failed: int
    pending: int
    departed: int

    @property
    def balances(self) -> bool:
        """Whether every kept image is exactly one of embedded, failed and pending."""
        return self.kept == self.embedded + self.failed + self.pending

    @property
    def failed_share(self) -> float:
        """How much of what is kept has failed, from 0 to 1."""
        return self.failed / self.kept if self.kept else 0.0

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return self.balances and self.pending == 0 and self.departed == 0


@dataclass(frozen=True)
class NormCheck:
    """The lengths of stored vectors; ``shortest`` and ``longest`` are None without any."""

    vectors: int
    off_unit: int
    shortest: float | None
    longest: float | None


class EmbeddingSpace:
    """The rows of one embedding space.

    Attributes:
        name, model, dimension, fingerprint: what the space was opened with.
        table: of its vectors.
    """

    def __init__(self, engine: Engine, name: str, model: str, dimension: int, fingerprint: str) -> None:
        self.engine = engine
        self.name = name
        self.model = model
        self.dimension = dimension
        self.fingerprint = fingerprint
        self.table: Table = embeddings_table(name, dimension)

    def require_encoder(self, encoder: Encoder) -> Encoder:
        """The one of an encoder's variants whose vectors may be compared with those of this space, or stored there.

        Raises:
            StoreError: there is none; names both models.
            ModelError: the encoder's model cannot be had.
        """
        if matching := encoder.matching(self.fingerprint):
            return matching
        dimension = encoder.dimension
        lengths = "" if dimension == self.dimension else f", with {self.dimension} and {dimension} dimensions"
        if encoder.model == self.model:
            raise StoreError(
                f"Space {self.name} holds vectors of {self.model} as it was with fingerprint {self.fingerprint}; now "
                f"it has {encoder.fingerprint}{lengths}, because its files have changed, or the way to prepare "
                "pictures for it, or its precision: they cannot be compared. Put the model back as it was, unset "
                "ABO_PRECISION and ABO_PREPARATION, or embed into another space with --space (ABO_SPACE)."
            )
        raise StoreError(
            f"Space {self.name} holds vectors of {self.model} (fingerprint {self.fingerprint}), and {encoder.model} "
            f"has fingerprint {encoder.fingerprint}{lengths}: they cannot be compared. Use that model, or name "
            "another space with --space (ABO_SPACE)."
        )

    def lost(self, fingerprint: str | None) -> StoreError:
        """The error that this space is gone.

        Args:
            fingerprint: of another space of its name that is there now; None if there is none.
        """
        if fingerprint is None:
            return StoreError(f"Space {self.name} has been dropped meanwhile. `abo spaces` lists those that there are.")
        return StoreError(
            f"Space {self.name} has been dropped meanwhile, and made anew for vectors of fingerprint {fingerprint} "
            f"instead of {self.fingerprint}. Open it anew."
        )

    @contextmanager
    def being_written(self) -> Iterator[Self]:
        """This space, kept from being dropped while the block writes into it, batch after batch.

        Any number may write at the same time.

        Raises:
            StoreError: it has been dropped since it was opened, or is being dropped.
        """
        with self._session() as connection:
            is_ours = connection.scalar(space_lock("pg_try_advisory_lock_shared"), self._writers)
            there = connection.scalar(select(Space.fingerprint).where(Space.name == self.name))
            if not is_ours or there != self.fingerprint:
                raise StoreError(f"Space {self.name} has been dropped meanwhile. Run again to make it anew.")
            yield self

    @contextmanager
    def without_writers(self, patience_s: float) -> Iterator[None]:
        """Keep everybody from ``being_written`` in the block.

        Raises:
            StoreError: somebody writes, and still does after so many seconds.
        """
        deadline = time.monotonic() + patience_s
        with self._session() as connection:
            while not connection.scalar(space_lock("pg_try_advisory_lock"), self._writers):
                if time.monotonic() >= deadline:
                    raise StoreError(f"A run is writing into space {self.name}. Try again when it has ended.")
                time.sleep(_POLL_SECONDS)
            yield

    @contextmanager
    def _session(self) -> Iterator[Connection]:
        """A connection for a lock that ends with it, also if the server goes away in the block.

        Without a transaction round it: an index build would wait for its snapshot.
        """
        with translated(self.engine), self.engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.detach()
            yield connection

    @property
    def _writers(self) -> dict[str, int | str]:
        return {"namespace": _WRITERS_NAMESPACE, "space": self.name}

    def known(self, first: int, last: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        """What is embedded and what has failed in a range of sample keys: two frames of image_id and digest."""
        with transaction(self.engine) as connection:
            columns = self.table.c
            embedded = connection.execute(
                select(columns.image_id, columns.digest).where(columns.sample_key.between(first, last))
            ).all()
            failed = connection.execute(
                select(Failure.image_id, Failure.digest).where(
                    Failure.space == self.name, Failure.sample_key.between(first, last)
                )
            ).all()
        schema = {"image_id": pl.String, "digest": pl.String}
        return (
            pl.DataFrame([tuple(row) for row in embedded], schema=schema, orient="row"),
            pl.DataFrame([tuple(row) for row in failed], schema=schema, orient="row"),
        )

    def vectors_of(self, digests: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors of files that are embedded already, for whichever images, by digest of the file."""
        # By the catalogue, which is indexed by digest; what has left it is not found, and need not be.
        statement = (
            "SELECT DISTINCT ON (i.digest) i.digest, e.embedding "
            f"FROM images i JOIN {self.table.name} e ON e.image_id = i.image_id AND e.digest = i.digest "
            "WHERE i.digest = ANY(%(ids)b) AND e.fingerprint = %(fingerprint)s ORDER BY i.digest, i.image_id"
        )
        with transaction(self.engine) as connection:
            found = _of_images(connection, statement, digests, fingerprint=self.fingerprint)
            return {digest: as_array(vector) for digest, vector in found}

    def write(self, embedded: Sequence[Embedded], failed: Sequence[Failed]) -> None:
        """Store one batch, in a transaction of its own. An image has a vector or a failure afterwards, never both.

        Raises:
            StoreError: a vector is none of this space, or the database does not answer.
        """
        self._check_vectors(embedded)
        with transaction(self.engine, of_sound_values=True) as connection:
            self._take_turns(connection, (*embedded, *failed))
            if embedded:
                self._store_vectors(connection, embedded)
            if failed:
                self._forget_vectors(connection, [failure.image_id for failure in failed])
                _record_failures(connection, self.name, failed)
            self._note_change(connection)

    def adopt(self, embedded: Sequence[Embedded]) -> Adopted:
        """Store vectors that this space's encoder made elsewhere, in a transaction of its own.

        Only of images that the catalogue has, with the very same bytes, and that are not embedded here: those of
        another machine may differ in their last digits, which is no reason to write them, and an index, anew.

        Args:
            embedded: no image twice.

        Raises:
            StoreError: a vector is none of this space, or the database does not answer.
        """
        self._check_vectors(embedded)
        image_ids = [image.image_id for image in embedded]
        # What the catalogue says of them must hold until they are stored.
        kept = "SELECT image_id, digest FROM images WHERE image_id = ANY(%(ids)b) ORDER BY image_id FOR NO KEY UPDATE"
        there = (
            f"SELECT image_id, digest FROM {self.table.name} "
            "WHERE image_id = ANY(%(ids)b) AND fingerprint = %(fingerprint)s"
        )
        with transaction(self.engine, of_sound_values=True) as connection:
            self._take_turns(connection, embedded)
            catalogue = dict(_of_images(connection, kept, image_ids))
            stored = dict(_of_images(connection, there, image_ids, fingerprint=self.fingerprint))
            known = [image for image in embedded if image.image_id in catalogue]
            same = [image for image in known if catalogue[image.image_id] == image.digest]
            new = [image for image in same if stored.get(image.image_id) != image.digest]
            if new:
                self._store_vectors(connection, new)
                self._note_change(connection)
        return Adopted(len(new), len(same) - len(new), len(embedded) - len(known), len(known) - len(same))

    def remove(self, image_ids: Sequence[str]) -> None:
        """Forget images: their vectors and their failures."""
        if not image_ids:
            return
        with transaction(self.engine) as connection:
            self._forget_vectors(connection, image_ids)
            self._forget_failures(connection, image_ids)
            self._note_change(connection)

    def accounts(self, starts: Sequence[int]) -> list[Account]:
        """The account of each partition.

        Args:
            starts: the first sample key of each partition, ascending.
        """
        return accounts(self.engine, self.name, self.table.name, starts)

    def account(self, first: int = 0, last: int = LAST_KEY) -> Account:
        """The account of a range of sample keys; of the whole catalogue by default."""
        return accounts(self.engine, self.name, self.table.name, [first], last)[0]

    def changed_at(self) -> datetime:
        """When a vector or a failure was last written or removed."""
        with transaction(self.engine) as connection:
            return connection.execute(select(Space.changed_at).where(Space.name == self.name)).scalar_one()

    def fingerprints(self, first: int, last: int) -> dict[str, int]:
        """How many vectors of a range of sample keys there are of each fingerprint."""
        columns = self.table.c
        query = (
            select(columns.fingerprint, func.count())
            .where(columns.sample_key.between(first, last))
            .group_by(columns.fingerprint)
        )
        with transaction(self.engine) as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def coverage(self, cutoff: int) -> tuple[int, int]:
        """How many images of the catalogue up to a sample key are embedded, and how many there are."""
        known = self.table.join(Image, Image.image_id == self.table.c.image_id)
        with transaction(self.engine) as connection:
            embedded = connection.scalar(
                select(func.count()).select_from(known).where(self.table.c.sample_key <= cutoff)
            )
            kept = connection.scalar(select(func.count()).select_from(Image).where(Image.sample_key <= cutoff))
        return embedded or 0, kept or 0

    def vectors(self, cutoff: int) -> int:
        """How many vectors there are up to a sample key, also of images that left the catalogue."""
        count = select(func.count()).select_from(self.table).where(self.table.c.sample_key <= cutoff)
        with transaction(self.engine) as connection:
            return connection.scalar(count) or 0

    def check_norms(self, first: int, last: int, tolerance: float) -> NormCheck:
        """The lengths of the vectors of a range of sample keys; a NaN cannot be stored, the type refuses it."""
        norm = func.vector_norm(self.table.c.embedding)
        query = select(
            func.count(),
            func.count().filter(func.abs(norm - 1) > tolerance),
            func.min(norm),
            func.max(norm),
        ).where(self.table.c.sample_key.between(first, last))
        with transaction(self.engine) as connection:
            return NormCheck(*connection.execute(query).one())

    def require_sound(self, tolerance: float = NORM_TOLERANCE) -> None:
        """See that the vectors may be compared with one another: of one model, and of length 1.

        Raises:
            StoreError: some may not; says what to do about them.
        """
        found = self.fingerprints(0, LAST_KEY)
        foreign = sum(count for fingerprint, count in found.items() if fingerprint != self.fingerprint)
        off_unit = self.check_norms(0, LAST_KEY, tolerance).off_unit
        if foreign or off_unit:
            raise StoreError(
                f"Of the vectors in {self.table.name}, {foreign:,} are not of {self.model} ({self.fingerprint}) and "
                f"{off_unit:,} do not have length 1: they cannot be compared with the others. The checks of "
                "image_embeddings say in which partitions. Delete those rows, and run the partitions again."
            )

    def failures_by_reason(self, first: int = 0, last: int = LAST_KEY) -> list[Reason]:
        """Why images of a range of sample keys failed, most frequent first."""
        example = func.min(Failure.image_id + ": " + Failure.message)
        query = (
            select(Failure.stage, Failure.error_type, func.count(), example)
            .where(Failure.space == self.name, Failure.sample_key.between(first, last))
            .group_by(Failure.stage, Failure.error_type)
            .order_by(func.count().desc(), Failure.stage, Failure.error_type)
        )
        with transaction(self.engine) as connection:
            return [Reason(*row) for row in connection.execute(query)]

    def failures(self) -> list[FailedImage]:
        """Every image that failed, in the catalogue's order."""
        query = (
            select(Failure.image_id, Image.path, Failure.stage, Failure.error_type, Failure.message, Failure.failed_at)
            .join(Image, Image.image_id == Failure.image_id)
            .where(Failure.space == self.name)
            .order_by(Failure.sample_key, Failure.image_id)
        )
        with transaction(self.engine) as connection:
            return [FailedImage(*row) for row in connection.execute(query)]

    def _note_change(self, connection: Connection) -> None:
        """Say that rows changed. Whoever finds another writer at it leaves it to that one, whose time is the same."""
        # Not the row's key, which is locked while the space is made the default: that is no writing.
        free = select(Space.name).where(Space.name == self.name).with_for_update(key_share=True, skip_locked=True)
        changed = update(Space).where(Space.name.in_(free)).values(changed_at=func.clock_timestamp())
        connection.execute(changed)

    def _take_turns(self, connection: Connection, images: Sequence[Embedded | Failed]) -> None:
        """Wait for whoever else writes near these images' keys, in an order that cannot become a deadlock.

        Of two runs with different outcomes for an image, neither would see, and so remove, the other's row. The key
        space has so few stretches that a batch needs few locks, and so many that partitions seldom share one.
        """
        lock = text(
            "SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || '.' || :space, stretch)) "
            "FROM unnest(:stretches) stretch"
        )
        stretches = sorted({image.sample_key >> _STRETCH_BITS for image in images})
        connection.execute(lock.bindparams(bindparam("stretches", stretches, ARRAY(BigInteger))), {"space": self.name})

    def _check_vectors(self, embedded: Sequence[Embedded]) -> None:
        for image in embedded:
            if image.vector.shape != (self.dimension,):
                raise StoreError(
                    f"The vector of {image.image_id} has {image.vector.size} dimensions; "
                    f"space {self.name} has {self.dimension}."
                )
        # All at once, which is quicker than one by one.
        if embedded and not np.isfinite(np.concatenate([image.vector for image in embedded])).all():
            bad = next(image.image_id for image in embedded if not np.isfinite(image.vector).all())
            raise StoreError(f"The vector of {bad} holds a number that is not finite; nothing was written.")

    def _store_vectors(self, connection: Connection, embedded: Sequence[Embedded]) -> None:
        """Store vectors in the place of failures: those that are there by a merge, new ones without its detour.

        For that nobody may add one of them meanwhile, and who would is waiting for this turn to end.
        """
        # One statement for both, because to send the ids takes longer than to find them.
        statement = (
            "WITH forgotten AS (DELETE FROM failures WHERE space = %(space)s AND image_id = ANY(%(ids)b)) "
            f"SELECT image_id FROM {self.table.name} WHERE image_id = ANY(%(ids)b)"
        )
        found = _of_images(connection, statement, [image.image_id for image in embedded], space=self.name)
        there = {image_id for (image_id,) in found}
        # Made while the server is busy with those before.
        new = (self._row(image) for image in embedded if image.image_id not in there)
        copy(connection, self.table, _EMBEDDING_COLUMNS, new)
        if there:
            known = (self._row(image) for image in embedded if image.image_id in there)
            merge(connection, self.table, _EMBEDDING_COLUMNS, known)

    def _row(self, image: Embedded) -> tuple[Any, ...]:
        return image.image_id, image.sample_key, image.digest, self.fingerprint, image.vector

    def _forget_failures(self, connection: Connection, image_ids: Sequence[str]) -> None:
        gone = "DELETE FROM failures WHERE space = %(space)s AND image_id = ANY(%(ids)b)"
        _of_images(connection, gone, image_ids, space=self.name)

    def _forget_vectors(self, connection: Connection, image_ids: Sequence[str]) -> None:
        _of_images(connection, f"DELETE FROM {self.table.name} WHERE image_id = ANY(%(ids)b)", image_ids)


def _of_images(connection: Connection, statement: str, image_ids: Sequence[str], **parameters: str) -> Any:
    """Execute a statement that is about so many images; its cursor.

    By psycopg, which sends a list in binary (``%(ids)b``) at a quarter of the cost of text. Never prepared, for a plan
    that was made while the table was small would go on reading all of it as it grows.
    """
    driver: Any = connection.connection.driver_connection
    return driver.execute(statement, {"ids": list(image_ids), **parameters}, prepare=False)


def as_array(vector: Any) -> NDArray[np.float32]:
    """A vector as pgvector hands it over, in this machine's byte order."""
    array: NDArray[np.float32] = vector.to_numpy().astype(np.float32, copy=False)
    return array


def space_lock(function: str) -> TextClause:
    """A function of Postgres for advisory locks, called with ``:namespace`` and the space of the name ``:space``.

    By the catalogue's schema too: another catalogue may have a space of the same name.
    """
    return text(f"SELECT {function}(:namespace, hashtext(current_schema() || '.' || :space))")


def accounts(
    engine: Engine, space: str, table: str | None, starts: Sequence[int], last: int = LAST_KEY
) -> list[Account]:
    """The account of each partition of a space; without a table, of a space that does not exist yet.

    Args:
        engine: of the database.
        space: its name.
        table: of its vectors.
        starts: the first sample key of each partition, ascending; what lies before is not looked at.
        last: the last sample key to look at.
    """
    vectors = table or "(SELECT image_id, sample_key, digest FROM images WHERE false)"
    within = "sample_key BETWEEN :first AND :last"
    judged = text(
        f"""
        WITH judged AS (
            SELECT width_bucket(sample_key, CAST(:starts AS bigint[])) AS bucket,
                   i.image_id IS NOT NULL AS is_kept,
                   coalesce(i.digest = e.digest, false) AS is_embedded,
                   coalesce(i.digest = f.digest, false) AS is_failed
            FROM (SELECT image_id, sample_key, digest FROM images WHERE {within}) i
            FULL JOIN (SELECT image_id, sample_key, digest FROM {vectors} v WHERE {within}) e
                USING (image_id, sample_key)
            FULL JOIN (SELECT image_id, sample_key, digest FROM failures WHERE space = :space AND {within}) f
                USING (image_id, sample_key)
        )
        SELECT bucket,
               count(*) FILTER (WHERE is_kept),
               count(*) FILTER (WHERE is_embedded),
               count(*) FILTER (WHERE is_failed),
               count(*) FILTER (WHERE is_kept AND NOT is_embedded AND NOT is_failed),
               count(*) FILTER (WHERE NOT is_kept)
        FROM judged GROUP BY bucket
        """
    )
    with transaction(engine) as connection:
        parameters = {"starts": list(starts), "space": space, "first": starts[0], "last": last}
        rows = connection.execute(judged, parameters).all()
    found = {bucket: Account(*counts) for bucket, *counts in rows}
    return [found.get(number, Account(0, 0, 0, 0, 0)) for number in range(1, len(starts) + 1)]


def _record_failures(connection: Connection, space: str, failed: Sequence[Failed]) -> None:
    statement = upsert(Failure)
    statement = statement.on_conflict_do_update(
        index_elements=[Failure.space, Failure.image_id],
        set_={name: statement.excluded[name] for name in ("sample_key", "digest", "stage", "error_type", "message")}
        | {"failed_at": func.now()},
    )
    connection.execute(
        statement,
        [
            {
                "space": space,
                "image_id": failure.image_id,
                "sample_key": failure.sample_key,
                "digest": failure.digest,
                "stage": failure.stage,
                "error_type": failure.error_type,
                "message": failure.message,
            }
            for failure in failed
        ],
    )
