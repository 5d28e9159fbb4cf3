"""Postgres: the only part of the package that speaks SQL.

``open_store`` gives a ``Store``, which holds the catalogue and the listings; ``Store.space`` and ``Store.open_space``
give an ``EmbeddingSpace``, which holds vectors and failures. ``nearest`` searches one, ``indexes`` indexes one;
``roster`` knows which there are, and which one searches use.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import polars as pl
from sqlalchemy import Connection, Engine, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from abo_pipeline.encoder import Encoder
from abo_pipeline.errors import StoreError
from abo_pipeline.settings import Settings
from abo_pipeline.store import roster
from abo_pipeline.store.database import (
    database_url,
    offered_vectorscale,
    open_engine,
    transaction,
    vectorscale_version,
)
from abo_pipeline.store.merge import Merged, merge
from abo_pipeline.store.roster import SpaceSummary
from abo_pipeline.store.schema import (
    Base,
    Image,
    Product,
    ProductImage,
    Space,
    create_embeddings_table,
    embeddings_table,
)
from abo_pipeline.store.spaces import Account, EmbeddingSpace, accounts

__all__ = ["EmbeddingSpace", "Merged", "SpaceSummary", "Store", "open_store", "opened_store"]

_FEW_REMOVED, _SHARE_REMOVED = 100, 0.1
"""Up to so many images, or such a share of them, may leave a catalogue without being asked about."""

_IMAGE_COLUMNS = ("image_id", "path", "width", "height", "sample_key", "digest")
_PRODUCT_COLUMNS = (
    "item_id",
    "domain_name",
    "title",
    "product_type",
    "color",
    "brand",
    "country",
    "keywords",
)
_PRODUCT_IMAGE_COLUMNS = ("image_id", "position", "item_id", "domain_name")


@dataclass(frozen=True)
class Store:
    """A database that is fit for use: it answers, has pgvector, and our tables in their newest version."""

    engine: Engine

    def versions(self) -> tuple[str, str]:
        """The server's version and pgvector's."""
        with transaction(self.engine) as connection:
            server = connection.scalar(text("SHOW server_version"))
            pgvector = connection.scalar(text("SELECT extversion FROM pg_extension WHERE extname = 'vector'"))
        return str(server), str(pgvector)

    def vectorscale(self) -> str | None:
        """The version of pgvectorscale in this database, or None."""
        with transaction(self.engine) as connection:
            return vectorscale_version(connection)

    def offered_vectorscale(self) -> str | None:
        """The version of pgvectorscale that the server could create in this database, or None."""
        with transaction(self.engine) as connection:
            return offered_vectorscale(connection)

    def write_images(self, kept: pl.DataFrame, *, allow_removal: bool = False) -> Merged:
        """Make the catalogue what ``kept`` says.

        Args:
            kept: the columns of ``catalog.SCHEMA``, one row an image.
            allow_removal: take it even if many images that have been embedded would leave the catalogue, and lose
                their vectors when their partitions are run.

        Raises:
            StoreError: more would leave than can be meant; nothing is changed.
        """
        with transaction(self.engine) as connection:
            before = connection.scalar(select(func.count()).select_from(Image)) or 0
            merged = _replace(connection, Image, _IMAGE_COLUMNS, kept.select(_IMAGE_COLUMNS))
            too_many = merged.removed > max(_FEW_REMOVED, _SHARE_REMOVED * before)
            if too_many and not allow_removal and self._has_vectors(connection):
                raise StoreError(
                    f"{merged.removed:,} of the catalogue's {before:,} images are not in this archive, or not kept any "
                    "more, and their vectors would be removed. If this is another archive, give it a catalogue of its "
                    "own with --catalogue NAME (ABO_CATALOGUE); if they are meant to go, use --allow-removal."
                )
        return merged

    def write_products(self, products: pl.DataFrame) -> Merged:
        """Make the listings what ``products`` says: the columns of ``listings.SCHEMA``."""
        shown = (
            products.select("item_id", "domain_name", pl.col("image_ids").alias("image_id"))
            .explode("image_id")
            .drop_nulls("image_id")
            .with_columns(position=pl.int_range(pl.len()).over("item_id", "domain_name"))
        )
        with transaction(self.engine) as connection:
            merged = _replace(connection, Product, _PRODUCT_COLUMNS, products.select(_PRODUCT_COLUMNS))
            _replace(connection, ProductImage, _PRODUCT_IMAGE_COLUMNS, shown.select(_PRODUCT_IMAGE_COLUMNS))
        return merged

    def open_space(self, name: str, encoder: Encoder) -> EmbeddingSpace:
        """The space for an encoder's vectors, made on first use.

        As long as it is not settled, any way to the model's vectors will do.

        Raises:
            StoreError: the space was made with another model, or with vectors of another length.
            ModelError: the space is new and the encoder's model cannot be loaded.
        """
        space = self.find_space(name) or self._create_space(name, encoder)
        # Asked in this order: the dimension takes the model.
        if self.is_settled(space) or (space.model, space.dimension) != (encoder.model, encoder.dimension):
            space.require_encoder(encoder)
        return space

    def settle_space(self, name: str, encoder: Encoder, fidelity: Mapping[str, Any]) -> EmbeddingSpace:
        """Have a space's vectors made by this encoder, and note how true that is, unless it has vectors already.

        Of several who do so at the same time the first one is heeded.

        Args:
            name: of a space that was opened.
            encoder: whose fingerprint the vectors will have.
            fidelity: what was measured, as plain values.

        Raises:
            StoreError: the space has been dropped meanwhile.
        """
        space = self.known_space(name)
        with transaction(self.engine) as connection:
            settled = connection.scalar(select(Space.fidelity).where(Space.name == name).with_for_update())
            if settled is None and not roster.has_vectors(connection, space.table):
                values = {"fingerprint": encoder.fingerprint, "fidelity": dict(fidelity)}
                connection.execute(update(Space).where(Space.name == name).values(values))
        return self.known_space(name)

    def is_settled(self, space: EmbeddingSpace) -> bool:
        """Whether it is decided by which encoder a space's vectors are made: it was noted, or there are some."""
        with transaction(self.engine) as connection:
            noted = connection.scalar(select(Space.fidelity.is_not(None)).where(Space.name == space.name))
            return bool(noted) or roster.has_vectors(connection, space.table)

    def fidelity(self, name: str) -> dict[str, Any] | None:
        """What ``settle_space`` noted; None before that."""
        with transaction(self.engine) as connection:
            found: dict[str, Any] | None = connection.scalar(select(Space.fidelity).where(Space.name == name))
        return found

    def made_for(self, name: str) -> str:
        """The ``made`` of the encoder that a space was settled with; empty where nothing has to be made for it."""
        return str((self.fidelity(name) or {}).get("made", ""))

    def find_space(self, name: str) -> EmbeddingSpace | None:
        """The space of that name; None if nothing has been embedded into it yet."""
        if not (name.isascii() and name.isprintable()):
            # Postgres takes not every text, and no space is called so.
            return None
        with transaction(self.engine) as connection:
            row = connection.execute(select(Space).where(Space.name == name)).one_or_none()
        return row and EmbeddingSpace(self.engine, row.name, row.model, row.dimension, row.fingerprint)

    def spaces(self) -> list[SpaceSummary]:
        """What each space holds, in the order in which they were made."""
        return roster.summaries(self.engine)

    def space_names(self) -> list[str]:
        """The names of the spaces, in the same order."""
        with transaction(self.engine) as connection:
            return list(connection.scalars(select(Space.name).order_by(Space.created_at, Space.name)))

    def default_space(self) -> str | None:
        """The space that searches use if none is named; None before the first space is made.

        It is the first one; and as long as nothing is embedded into that, the one that is made after it.
        """
        return roster.default_space(self.engine)

    def switch_default(self, name: str) -> str | None:
        """Have searches use a space from now on, in one step; ``switch_back`` undoes it.

        Returns:
            The default before, which may be the same; None if there was none.

        Raises:
            StoreError: there is no such space, or it holds no vectors.
        """
        return roster.switch_default(self.known_space(name))

    def switch_back(self) -> str:
        """Have searches use the space again that they used before the last switch, in one step.

        Returns:
            The default now.

        Raises:
            StoreError: they used no other, or it has been dropped since.
        """
        return roster.switch_back(self.engine)

    def drop_space(self, name: str) -> None:
        """Remove a space: its vectors, their indexes, and every row about it.

        Raises:
            StoreError: there is no such space, it is the default, or somebody is at work in it; nothing is changed.
        """
        roster.drop(self.known_space(name))

    def accounts(self, space: str, starts: Sequence[int]) -> list[Account]:
        """The account of each partition of a space, also of one that nothing has been embedded into yet.

        Args:
            space: its name.
            starts: the first sample key of each partition, ascending.
        """
        found = self.find_space(space)
        return accounts(self.engine, space, found.table.name if found else None, starts)

    def known_space(self, name: str) -> EmbeddingSpace:
        """The space of that name.

        Raises:
            StoreError: there is none; names those that there are.
        """
        space = self.find_space(name)
        if space is None:
            names = self.space_names()
            known = f"This catalogue has {', '.join(names)}." if names else "Nothing has been embedded yet: `abo run`."
            raise StoreError(f"There is no embedding space {name!r}. {known}")
        return space

    def _create_space(self, name: str, encoder: Encoder) -> EmbeddingSpace:
        space = EmbeddingSpace(self.engine, name, encoder.model, encoder.dimension, encoder.fingerprint)
        values = {
            "name": name,
            "model": space.model,
            "dimension": space.dimension,
            "fingerprint": space.fingerprint,
        }
        with transaction(self.engine) as connection:
            # Whoever else makes the same space at the same time waits here, and then finds it made.
            created = connection.execute(upsert(Space).values(**values).on_conflict_do_nothing()).rowcount
            if created:
                create_embeddings_table(connection, space.table)
                roster.fill_vacancy(connection, name)
        return self.find_space(name) or space

    def _has_vectors(self, connection: Connection) -> bool:
        spaces = connection.execute(select(Space.name, Space.dimension)).all()
        tables = [embeddings_table(name, dimension) for name, dimension in spaces]
        return any(roster.has_vectors(connection, table) for table in tables)


def _replace(connection: Connection, model: type[Base], columns: tuple[str, ...], rows: pl.DataFrame) -> Merged:
    table = model.metadata.tables[model.__tablename__]
    return merge(connection, table, columns, rows.iter_rows(), replace=True)


@contextmanager
def opened_store(settings: Settings) -> Iterator[Store]:
    """The store that the settings name, for one block; its connections are closed afterwards.

    Raises:
        SettingsError: the state folder cannot be written to.
        StoreError: the database does not answer or is not fit.
    """
    store = open_store(settings)
    try:
        yield store
    finally:
        store.engine.dispose()


def open_store(settings: Settings) -> Store:
    """The store that the settings name; an embedded server is started, or joined if it runs.

    Raises:
        SettingsError: the state folder cannot be written to.
        StoreError: the database does not answer or is not fit.
    """
    return Store(open_engine(database_url(settings), settings.catalogue))
