"""A pipeline for Dagster's processes to run, and a look into its database from outside.

What Dagster says of its runs is for ``harness``; here is what came of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl
from sqlalchemy import Engine, create_engine, text

from abo_pipeline.archive import Archive
from abo_pipeline.catalog import read_catalogue
from abo_pipeline.encoder import encoder_from
from abo_pipeline.sample import Sample
from abo_pipeline.sampling import partition_keys, partition_range, partition_starts
from abo_pipeline.settings import Settings
from abo_pipeline.store import Store, opened_store
from abo_pipeline.store.spaces import Account
from abo_pipeline_tests.holding import held_vector, waiting_sessions

EMBEDDINGS = "image_embeddings"
CATALOGUE = ("raw_archive", "listings", "image_paths")

UNREADABLE = 2
"""Files of the drawn archive that are kept and cannot be decoded."""


@dataclass(frozen=True)
class Pipeline:
    """A run over the drawn archive.

    Attributes:
        sample: what it is run over.
        environment: the variables of its processes.
    """

    sample: Sample
    environment: dict[str, str]

    @classmethod
    def over(cls, sample: Sample, folder: Path, database_url: str, **variables: str) -> "Pipeline":
        """With the small model, a few partitions, and a state folder of its own.

        Args:
            sample: the drawn archive.
            folder: for the state.
            database_url: of the database; empty for one of its own in the state folder.
            variables: changes, without ABO_ and in lower case.
        """
        settings = {
            "state_dir": str(folder / "state"),
            "archive": str(sample.archive),
            "listings": str(sample.listings),
            "database_url": database_url,
            "model": "small-clip",
            "device": "cpu",
            "sizes": "20,60,120",
            "exact_below": "0",
            "partitions": "2",
            "batch_size": "8",
            "queries": "a red chair;like:",
            "report_k": "3",
        }
        return cls(sample, {f"ABO_{name.upper()}": value for name, value in (settings | variables).items()})

    @cached_property
    def settings(self) -> Settings:
        """What its processes read from their variables."""
        return Settings.read(**{name.removeprefix("ABO_").lower(): value for name, value in self.environment.items()})

    @property
    def keys(self) -> list[str]:
        """Its partitions, in order."""
        return partition_keys(self.settings.partitions)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Its store, for one block."""
        with opened_store(self.settings) as store:
            yield store

    @cached_property
    def catalogue(self) -> pl.DataFrame:
        """What has to be embedded, read from the archive and not from what a run made of it."""
        with Archive.open(self.sample.archive, self.settings.folder("expected")) as archive:
            return read_catalogue(archive, min_side=self.settings.min_side).kept

    def images(self, partition: str) -> list[str]:
        """The images of a partition, in the order in which a run comes to them."""
        mine = self.catalogue.filter(pl.col("sample_key").is_between(*partition_range(partition)))
        return mine.sort("offset")["image_id"].to_list()

    def rows(self) -> dict[str, str]:
        """Each embedded image, with the transaction that wrote it: a row that is written again has another."""
        with self._engine.connect() as connection:
            found = connection.execute(text(f"SELECT image_id, xmin::text FROM {self._vectors}")).all()
        assert len({row.image_id for row in found}) == len(found), "an image is stored twice"
        return {row.image_id: row.xmin for row in found}

    def failed(self) -> set[str]:
        """The images that failed."""
        with self._engine.connect() as connection:
            return set(connection.execute(text("SELECT image_id FROM failures")).scalars())

    def accounts(self) -> dict[str, Account]:
        """The account of each partition."""
        with self.store() as store:
            accounts = store.accounts(self.settings.space_name, partition_starts(self.settings.partitions))
        return dict(zip(self.keys, accounts, strict=True))

    def assert_complete(self) -> None:
        """Each image of the archive that is to be kept is embedded or failed, exactly one of them; and no other is."""
        rows, failed = self.rows(), self.failed()
        assert rows.keys() | failed == set(self.catalogue["image_id"])
        assert not rows.keys() & failed
        assert len(failed) == UNREADABLE
        assert all(account.settled for account in self.accounts().values()), self.accounts()

    def indexes(self) -> dict[int, bool]:
        """Each size that has an index, and whether Postgres may use it."""
        query = (
            "SELECT size, indisvalid AND indisready AS usable FROM size_indexes "
            "JOIN pg_class ON relname = index_name JOIN pg_index ON indexrelid = pg_class.oid ORDER BY size"
        )
        with self._engine.connect() as connection:
            return {row.size: row.usable for row in connection.execute(text(query))}

    def forget(self, *images: str) -> None:
        """Lose the vectors of some images, behind the pipeline's back."""
        with self._engine.begin() as connection:
            deleted = connection.execute(
                text(f"DELETE FROM {self._vectors} WHERE image_id = ANY(:images)"), {"images": list(images)}
            )
            assert deleted.rowcount == len(images)

    def empty(self) -> None:
        """Lose every vector and failure."""
        with self._engine.begin() as connection:
            if connection.scalar(text("SELECT to_regclass(:table)"), {"table": self._vectors}):
                connection.execute(text(f"TRUNCATE {self._vectors}, failures"))

    @contextmanager
    def held(self, image: str) -> Iterator[None]:
        """For the block, keep everybody from storing an image's vector, so that this is the middle of a partition."""
        with self.store() as store:
            store.open_space(self.settings.space_name, encoder_from(self.settings))
        with held_vector(self._engine, self._vectors, image):
            yield

    def waiting(self) -> int:
        """How many connections wait for somebody else's transaction."""
        return waiting_sessions(self._engine)

    def close(self) -> None:
        """Let go of the database, so that it can be dropped."""
        self._engine.dispose()

    @cached_property
    def _engine(self) -> Engine:
        assert self.settings.database_url is not None
        return create_engine(self.settings.database_url.get_secret_value())

    @property
    def _vectors(self) -> str:
        return f"embeddings_{self.settings.space_name}"
