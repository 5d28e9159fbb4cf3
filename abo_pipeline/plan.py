"""A plan before a long run: what is left to embed, how long it will take, and what it will need.

Plain arithmetic over accounts and speeds. Where the speeds of past runs are kept is for ``defs.history``, and how a
plan is shown for those who show it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from abo_pipeline.store.spaces import Account
from abo_pipeline.store.strategies import HNSW_M

_ROW_BYTES = 190
"""Of a stored vector besides the vector itself: tuple header, id, key, digest, fingerprint, entries in two b-trees."""


@dataclass(frozen=True)
class Speed:
    """How quick embedding was.

    Attributes:
        images: that were embedded or failed, in the runs that were looked at.
        seconds: that these took, from reading to writing.
        runs: how many.
    """

    images: int
    seconds: float
    runs: int

    @property
    def images_per_second(self) -> float:
        """Over all runs."""
        return self.images / self.seconds


@dataclass(frozen=True)
class Plan:
    """What is left to do.

    Attributes:
        kept: images of the catalogue.
        embedded: of these, done.
        failed: of these, not tried again unless asked for.
        pending: of these, to be embedded.
        partitions: in which something is to do, of how many.
        all_partitions: how many there are.
        speed: of past runs on this machine; None if there were none.
        disk_bytes: that the pending vectors and their indexes will need in the database.
    """

    kept: int
    embedded: int
    failed: int
    pending: int
    partitions: int
    all_partitions: int
    speed: Speed | None
    disk_bytes: int

    @property
    def minutes(self) -> float | None:
        """Expected, by the speed of past runs; None if there were none and something is to do."""
        if self.pending == 0:
            return 0.0
        return self.pending / self.speed.images_per_second / 60 if self.speed else None

    def __str__(self) -> str:
        if self.pending == 0:
            return f"nothing to embed: kept {self.kept:,} = embedded {self.embedded:,} + failed {self.failed:,}"
        expected = "of a duration that the first partition will tell" if self.minutes is None else _span(self.minutes)
        return (
            f"{self.pending:,} images to embed in {self.partitions:,} of {self.all_partitions:,} partitions, "
            f"{expected}, {self.disk_bytes / 1e6:,.0f} MB in the database"
        )


def make_plan(accounts: Sequence[Account], sizes: Sequence[int], dimension: int, speed: Speed | None) -> Plan:
    """The plan for what the accounts leave to do.

    Args:
        accounts: one a partition.
        sizes: that will be indexed.
        dimension: of the vectors.
        speed: of past runs on this machine.
    """
    kept = sum(account.kept for account in accounts)
    pending = sum(account.pending for account in accounts)
    # Whatever is pending is spread evenly over the key space, or lies at its end: no size has more than its share.
    indexed = sum(min(pending, size) for size in sizes)
    return Plan(
        kept=kept,
        embedded=sum(account.embedded for account in accounts),
        failed=sum(account.failed for account in accounts),
        pending=pending,
        partitions=sum(not account.settled for account in accounts),
        all_partitions=len(accounts),
        speed=speed,
        disk_bytes=pending * _vector_bytes(dimension) + indexed * _index_bytes(dimension),
    )


def _vector_bytes(dimension: int) -> int:
    return 4 * dimension + _ROW_BYTES


def _index_bytes(dimension: int) -> int:
    """Of a vector in an HNSW index of half precision.

    Its element, and the list of its neighbours: 2 m of them in the lowest layer and m in each of the others, 6 bytes
    each (pgvector's hnsw.h), of which a page of 8 KB holds whole ones only.
    """
    return round((2 * dimension + 72 + 2.1 * HNSW_M * 6) * 1.2)


def _span(minutes: float) -> str:
    if minutes < 1:
        return "less than a minute"
    return f"about {minutes:,.0f} minutes" if minutes < 120 else f"about {minutes / 60:,.1f} hours"
