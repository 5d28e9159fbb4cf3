"""The tables, as SQLAlchemy models, and the steps that bring a database to them.

Facts behind the choices: a ``vector(512)`` row is pushed out of line by default, which makes an exact scan 3.6 times
slower; ``toast_tuple_target`` keeps it inline. Vectors of each embedding space have a table of their own, whose type
enforces the dimension. Statements over the tables live in the package's other modules.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    func,
    inspect,
    select,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateIndex, CreateSchema, CreateTable

from abo_pipeline.errors import StoreError


class Base(DeclarativeBase):
    """The tables that exist once; the embeddings tables exist once a space."""


class Image(Base):
    """A kept image of the catalogue."""

    __tablename__ = "images"
    __table_args__ = (Index("images_by_sample_key", "sample_key"), Index("images_by_digest", "digest"))

    image_id: Mapped[str] = mapped_column(Text, primary_key=True)
    path: Mapped[str] = mapped_column(Text)
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    sample_key: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str] = mapped_column(Text)


class Product(Base):
    """A listing. A text that the listing lacks is null."""

    __tablename__ = "products"

    item_id: Mapped[str] = mapped_column(Text, primary_key=True)
    domain_name: Mapped[str] = mapped_column(Text, primary_key=True)
    title: Mapped[str | None] = mapped_column(Text)
    product_type: Mapped[str | None] = mapped_column(Text)
    color: Mapped[str | None] = mapped_column(Text)
    brand: Mapped[str | None] = mapped_column(Text)
    country: Mapped[str | None] = mapped_column(Text)
    keywords: Mapped[list[str]] = mapped_column(ARRAY(Text))


class ProductImage(Base):
    """Which image shows which product.

    The key's order serves the question "which product is this a picture of?"; the index, "which pictures has this
    product?".
    """

    __tablename__ = "product_images"
    __table_args__ = (Index("product_images_by_product", "item_id", "domain_name"),)

    image_id: Mapped[str] = mapped_column(Text, primary_key=True)
    position: Mapped[int] = mapped_column(SmallInteger, primary_key=True, comment="0 is the main image")
    item_id: Mapped[str] = mapped_column(Text, primary_key=True)
    domain_name: Mapped[str] = mapped_column(Text, primary_key=True)


class Space(Base):
    """An embedding space: which model made its vectors."""

    __tablename__ = "spaces"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    model: Mapped[str] = mapped_column(Text)
    dimension: Mapped[int] = mapped_column(Integer)
    fingerprint: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    changed_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), comment="when its vectors or failures last changed"
    )
    fidelity: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB, comment="how true its encoder was found to be to the reference; null before its first vector"
    )


class SearchDefault(Base):
    """The space that searches use if none is named: one row, as soon as there is a space.

    The keys keep it from naming a space that is gone, also while one is dropped and chosen at the same time.
    """

    __tablename__ = "search_default"
    __table_args__ = (CheckConstraint("one", name="search_default_is_one"),)

    one: Mapped[bool] = mapped_column(Boolean, primary_key=True, server_default=true(), comment="there is no other row")
    space: Mapped[str] = mapped_column(ForeignKey("spaces.name"))
    previous: Mapped[str | None] = mapped_column(
        ForeignKey("spaces.name", ondelete="SET NULL"), comment="what switching back goes back to"
    )


class Failure(Base):
    """An image that could not be embedded, and why."""

    __tablename__ = "failures"
    __table_args__ = (Index("failures_by_sample_key", "space", "sample_key"),)

    space: Mapped[str] = mapped_column(Text, primary_key=True)
    image_id: Mapped[str] = mapped_column(Text, primary_key=True)
    sample_key: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str] = mapped_column(Text)
    stage: Mapped[str] = mapped_column(Text, comment="read, decode or encode")
    error_type: Mapped[str] = mapped_column(Text)
    message: Mapped[str] = mapped_column(Text)
    failed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class SizeIndex(Base):
    """How a size of a space is searched: by which index if any, with what effort, and what that was measured to give.

    What was measured is null until it has been, and again when the index is replaced.
    """

    __tablename__ = "size_indexes"

    space: Mapped[str] = mapped_column(Text, primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    cutoff: Mapped[int] = mapped_column(BigInteger, comment="the last sample key of the size")
    index_name: Mapped[str | None] = mapped_column(Text, comment="null where an exact scan is quicker")
    built_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    strategy: Mapped[str] = mapped_column(Text, server_default="hnsw")
    rows: Mapped[int] = mapped_column(
        BigInteger, server_default=text("0"), comment="vectors when it was built or measured"
    )
    extension: Mapped[str | None] = mapped_column(Text, comment="that the index was last seen to work with")
    efforts: Mapped[dict[str, int] | None] = mapped_column(JSONB, comment="effort by number of hits")
    measured: Mapped[dict[str, Any] | None] = mapped_column(JSONB, comment="recall and latency by kind and effort")
    measured_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Background(Base):
    """How similar the best hits of random queries are, ascending: what a query's own best hit is judged by."""

    __tablename__ = "backgrounds"

    space: Mapped[str] = mapped_column(Text, primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    kind: Mapped[str] = mapped_column(Text, primary_key=True, comment="text or image")
    similarities: Mapped[list[float]] = mapped_column(ARRAY(Double))


class GoldenHit(Base):
    """A hit of a fixed query at a size, as recorded after an index build."""

    __tablename__ = "golden_hits"

    space: Mapped[str] = mapped_column(Text, primary_key=True)
    recorded_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    query: Mapped[str] = mapped_column(Text, primary_key=True)
    rank: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    image_id: Mapped[str] = mapped_column(Text)
    similarity: Mapped[float] = mapped_column(Double)


def embeddings_table(space: str, dimension: int) -> Table:
    """The table of a space's vectors: one row an embedded image, keyed by what it is."""
    name = f"embeddings_{space}"
    return Table(
        name,
        MetaData(),
        Column("image_id", Text, primary_key=True, comment="of the catalogue"),
        Column("sample_key", BigInteger, nullable=False, comment="place in the catalogue's order"),
        Column("digest", Text, nullable=False, comment="of the file that was embedded; another one means: embed again"),
        Column("fingerprint", Text, nullable=False, comment="of the encoder that made the vector"),
        Column("embedding", Vector(dimension), nullable=False, comment="of length 1"),
        Index(f"{name}_by_sample_key", "sample_key"),
        postgresql_with={"toast_tuple_target": 8160},
    )


def create_embeddings_table(connection: Connection, table: Table) -> None:
    """Make a space's table unless it is there."""
    connection.execute(CreateTable(table, if_not_exists=True))
    for index in table.indexes:
        connection.execute(CreateIndex(index, if_not_exists=True))


def _add_what_watches(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE spaces ADD COLUMN changed_at timestamptz NOT NULL DEFAULT now()"))
    connection.execute(
        text(
            "CREATE TABLE golden_hits (space text, recorded_at timestamptz, size bigint, query text, rank smallint, "
            "image_id text NOT NULL, similarity double precision NOT NULL, "
            "PRIMARY KEY (space, recorded_at, size, query, rank))"
        )
    )


def _add_what_is_measured(connection: Connection) -> None:
    connection.execute(
        text(
            "ALTER TABLE size_indexes ALTER COLUMN index_name DROP NOT NULL, "
            "ADD COLUMN strategy text NOT NULL DEFAULT 'hnsw', ADD COLUMN rows bigint NOT NULL DEFAULT 0, "
            "ADD COLUMN extension text, ADD COLUMN efforts jsonb, ADD COLUMN measured jsonb, "
            "ADD COLUMN measured_at timestamptz"
        )
    )
    connection.execute(
        text(
            "CREATE TABLE backgrounds (space text, size bigint, kind text, similarities double precision[] NOT NULL, "
            "PRIMARY KEY (space, size, kind))"
        )
    )
    connection.execute(text("CREATE INDEX product_images_by_product ON product_images (item_id, domain_name)"))
    connection.execute(text("CREATE INDEX images_by_digest ON images (digest)"))


def _add_search_default(connection: Connection) -> None:
    connection.execute(
        text(
            "CREATE TABLE search_default (one boolean PRIMARY KEY DEFAULT true "
            "CONSTRAINT search_default_is_one CHECK (one), space text NOT NULL REFERENCES spaces, "
            "previous text REFERENCES spaces ON DELETE SET NULL)"
        )
    )
    # Until now searches used what the last run had used, of which this is the trace.
    connection.execute(
        text(
            "INSERT INTO search_default (space) "
            "SELECT name FROM spaces ORDER BY changed_at DESC, created_at DESC, name LIMIT 1"
        )
    )


def _add_fidelity(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE spaces ADD COLUMN fidelity jsonb"))


STEPS: tuple[Callable[[Connection], None], ...] = (
    _add_what_watches,
    _add_what_is_measured,
    _add_search_default,
    _add_fidelity,
)
"""The schema's history: the n-th step makes version n + 1 of version n. A fresh schema is made by the models above, at
the newest version. Add to the end; never change a step that is out, and give it tables as they were then."""

_NEWEST = 1 + len(STEPS)
_VERSION = Table("schema_version", MetaData(), Column("version", Integer, nullable=False))
_LOCK = 0x41424F


def lock_schema(connection: Connection) -> None:
    """Until the transaction ends, be the only one to upgrade: two processes may come first at the same time."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


def upgrade(connection: Connection, schema: str) -> None:
    """Bring a schema to the newest version, in the caller's transaction and under its ``lock_schema``.

    Doing so again changes nothing.

    Args:
        connection: one that looks for tables in that schema first.
        schema: a Postgres schema, made if it is not there.

    Raises:
        StoreError: the schema was made by a newer version of this package.
    """
    # IF NOT EXISTS needs the right to create even where there is nothing to create: look first.
    if not inspect(connection).has_schema(schema):
        connection.execute(CreateSchema(schema))
    if not inspect(connection).has_table(_VERSION.name, schema):
        connection.execute(CreateTable(_VERSION))
    version = connection.scalar(select(func.max(_VERSION.c.version))) or 0
    if version > _NEWEST:
        raise StoreError(
            f"The database has schema version {version}, made by a newer abo_pipeline; this one knows {_NEWEST}. "
            "Upgrade abo_pipeline, or use another database."
        )
    if version == 0:
        # Without a look at what is there: a table of the same name in another schema is somebody else's.
        Base.metadata.create_all(connection, checkfirst=False)
    else:
        for step in STEPS[version - 1 :]:
            step(connection)
    if version < _NEWEST:
        connection.execute(_VERSION.delete())
        connection.execute(_VERSION.insert().values(version=_NEWEST))
