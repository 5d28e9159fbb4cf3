"""What assets and ops need from outside: settings, a database, a model, somebody to tell about progress.

Resources are addresses and promises: a database is opened for a block, a model is loaded at its first vector. Keep
asset logic out of here. They are plain objects rather than ``ConfigurableResource``s, because Dagster shows the fields
of the latter in the UI, and an address may hold a password.
"""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import dagster as dg

from abo_pipeline.download import in_megabytes
from abo_pipeline.embedding import Tally
from abo_pipeline.encoder import encoder_from
from abo_pipeline.settings import Settings
from abo_pipeline.store import Store, opened_store


@dataclass(frozen=True)
class StoreResource:
    """The database that the settings name."""

    settings: Settings

    def opened(self) -> AbstractContextManager[Store]:
        """The store, for one block; its connections are closed afterwards."""
        return opened_store(self.settings)


class Progress(Protocol):
    """Somebody who wants to know how far long work is."""

    def download(self, name: str, done: int, total: int | None) -> None:
        """Bytes of a file that are here, of how many if that is known."""

    def indexing(self, name: str, done: int, total: int | None) -> None:
        """Bytes of a tar that are indexed, of how many."""

    def choosing(self, words: str) -> None:
        """What is done before a space's first image, to find its encoder; the run's log is told as well."""

    def embedding(self, partition_key: str, tally: Tally) -> None:
        """A batch of a partition is done."""

    def building(self, words: str) -> None:
        """How far the vector indexes are."""


class LogProgress:
    """Writes to Dagster's log, at most every ``seconds``."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def download(self, name: str, done: int, total: int | None) -> None:
        """Bytes of a file that are here."""
        if self._is_due():
            dg.get_dagster_logger().info(f"{name}: {in_megabytes(done, total)} fetched")

    def indexing(self, name: str, done: int, total: int | None) -> None:
        """Bytes of a tar that are indexed."""
        if self._is_due():
            dg.get_dagster_logger().info(f"{name}: {in_megabytes(done, total)} indexed")

    def choosing(self, words: str) -> None:
        """Nothing: it is there already."""

    def embedding(self, partition_key: str, tally: Tally) -> None:
        """A batch of a partition is done."""
        if self._is_due():
            left = "" if tally.seconds_left is None else f", {tally.seconds_left:.0f} s left"
            dg.get_dagster_logger().info(
                f"{partition_key}: {tally.done:,} of {tally.to_do:,} images, {tally.failed:,} failed, "
                f"{tally.images_per_second:.1f} images/s{left}"
            )

    def building(self, words: str) -> None:
        """How far the vector indexes are: they report about once a second, and only what is new."""
        dg.get_dagster_logger().info(words)

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


def default_resources(settings: Settings) -> dict[str, object]:
    """The resources by name, as the settings say; nothing is opened or loaded."""
    return {
        "settings": dg.ResourceDefinition.hardcoded_resource(settings),
        "store": dg.ResourceDefinition.hardcoded_resource(StoreResource(settings)),
        "encoder": dg.ResourceDefinition.hardcoded_resource(encoder_from(settings)),
        "progress": dg.ResourceDefinition.hardcoded_resource(LogProgress()),
    }
