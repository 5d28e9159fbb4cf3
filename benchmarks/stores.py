"""A store to measure: a Postgres server of its own, a catalogue with listings, and vectors for its pictures."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl
import psycopg
from pgvector.psycopg import register_vector
from PIL import Image
from sqlalchemy import Engine, make_url, text

from abo_pipeline import catalog, listings
from abo_pipeline.encoder import Encoder
from abo_pipeline.sampling import cutoff, sample_key
from abo_pipeline.store import Store
from abo_pipeline.store.database import open_engine, transaction
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline.store.server_programs import PIXELTABLE, Wheel
from abo_pipeline.store.spaces import Embedded, EmbeddingSpace
from benchmarks.vectors import Clip, Vectors

Bare = psycopg.Connection[Any]

IMAGES_A_PRODUCT = 3
"""About what ABO has."""


class NamedOnly(Encoder):
    """Says who it is, which is all that opening a space asks of a model."""

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        """Nothing is embedded with it."""
        raise NotImplementedError

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Nothing is embedded with it."""
        raise NotImplementedError

    def truncates(self, text: str) -> bool:
        """Nothing is embedded with it."""
        raise NotImplementedError


@dataclass(frozen=True)
class NamedEncoder(NamedOnly):
    """What opening a space asks of a model: who it is."""

    dimension: int
    fingerprint: str = "0011223344556677"
    model: str = "vectors of benchmarks.vectors"
    device: str = "cpu"


@dataclass(frozen=True)
class Pictures:
    """Images and their vectors in the catalogue's order, so that the first n are the size n.

    Attributes:
        ids: image_ids.
        keys: sample keys, ascending.
        vectors: (n, dimension).
    """

    ids: Sequence[str]
    keys: Sequence[int]
    vectors: Vectors

    @classmethod
    def drawn(cls, count: int, clip: Clip) -> "Pictures":
        """So many of them."""
        keyed = sorted((sample_key(name), name) for name in (f"{number:08x}" for number in range(count)))
        return cls([name for _, name in keyed], [key for key, _ in keyed], clip.images(count))

    def first(self, size: int) -> "Pictures":
        """Those of a size; the vectors are the same memory."""
        return Pictures(self.ids[:size], self.keys[:size], self.vectors[:size])

    def cutoff(self, size: int) -> int:
        """The last sample key of a size."""
        return cutoff(pl.Series(self.keys), size)

    def batches(self, rows: int) -> Iterator[list[Embedded]]:
        """What a model would hand over, so many images at a time."""
        for first in range(0, len(self.ids), rows):
            yield [
                Embedded(self.ids[at], self.keys[at], "d1", self.vectors[at])
                for at in range(first, min(first + rows, len(self.ids)))
            ]


@contextmanager
def fresh_store(wheel: Wheel = PIXELTABLE) -> Iterator[Store]:
    """A store with nothing in it, on a server of that wheel which is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="abo-benchmark-") as folder:
        server = EmbeddedServer(Path(folder) / "postgres", wheel)
        store = None
        try:
            store = Store(open_engine(make_url(server.ensure_running())))
            yield store
        finally:
            if store:
                store.engine.dispose()
            server.stop()


def write_catalogue(store: Store, pictures: Pictures) -> None:
    """Make the pictures the store's catalogue, with a listing for every third."""
    images = {
        "image_id": pictures.ids,
        "path": [f"{name[:2]}/{name}.jpg" for name in pictures.ids],
        "width": 1000,
        "height": 1000,
        "sample_key": pictures.keys,
        "offset": 0,
        "size": 1,
        "digest": "d1",
    }
    store.write_images(pl.DataFrame(images, schema=catalog.SCHEMA), allow_removal=True)
    firsts = range(0, len(pictures.ids), IMAGES_A_PRODUCT)
    products = {
        "item_id": [f"B{first:09}" for first in firsts],
        "domain_name": "amazon.com",
        "title": [f"Thing number {first}, made to be found" for first in firsts],
        "product_type": "THING",
        "color": "red",
        "brand": "Somebody",
        "country": "US",
        "keywords": [["thing", "found"]] * len(firsts),
        "image_ids": [list(pictures.ids[first : first + IMAGES_A_PRODUCT]) for first in firsts],
    }
    store.write_products(pl.DataFrame(products, schema=listings.SCHEMA))
    with transaction(store.engine) as connection:
        connection.execute(text("ANALYZE images, products, product_images"))


def open_space(store: Store, name: str, dimension: int) -> EmbeddingSpace:
    """An empty space for vectors of that length."""
    return store.open_space(name, NamedEncoder(dimension))


@contextmanager
def bare_connection(engine: Engine, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[Bare]:
    """What somebody would use without us: psycopg with pgvector's types, in autocommit, with Postgres's settings."""
    url = engine.url
    with transaction(engine) as connection:
        path = str(connection.scalar(text("SHOW search_path")))
    with psycopg.connect(
        user=url.username, dbname=url.database, host=str(url.query["host"]), autocommit=True
    ) as connection:
        for name, value in {"search_path": path, **settings}.items():
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        register_vector(connection)
        yield connection
