"""One partition: what the catalogue has and the store lacks → vectors and failures.

A run compares the catalogue with the rows, does what is missing or changed, and forgets what left the catalogue; so
doing it again does nothing, and an interruption costs the batch in hand. Each batch is committed by itself. How bytes
become pixels, pixels vectors, and vectors rows is for ``decoding``, ``encoder`` and ``store``.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from abo_pipeline.archive import Archive
from abo_pipeline.decoding import decode
from abo_pipeline.encoder import Encoder
from abo_pipeline.errors import ImageError
from abo_pipeline.sampling import partition_range
from abo_pipeline.settings import Settings
from abo_pipeline.store.spaces import Embedded, EmbeddingSpace, Failed

READ, DECODE, ENCODE, WRITE = "read", "decode", "encode", "write"


@dataclass(frozen=True)
class Limits:
    """What is asked of one image.

    Attributes:
        max_file_bytes: a larger file is a failure, and is not read.
        max_pixels: a larger picture is a failure, and is not unpacked.
    """

    max_file_bytes: int
    max_pixels: int

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """The limits that the settings name."""
        return cls(settings.max_file_bytes, settings.max_pixels)


@dataclass
class Tally:
    """What a run of a partition has done so far; complete when the run ends.

    Attributes:
        kept: images of the catalogue in the partition.
        unchanged: of these, embedded before and left alone.
        known_failures: of these, failed before with the same bytes and not tried again.
        embedded: newly embedded, or again because their bytes changed.
        failed: newly failed.
        removed: vectors and failures whose image left the catalogue.
        seconds: spent in each stage.
    """

    kept: int
    unchanged: int = 0
    known_failures: int = 0
    embedded: int = 0
    failed: int = 0
    removed: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((READ, DECODE, ENCODE, WRITE), 0.0))

    @property
    def to_do(self) -> int:
        """Images that this run embeds, or fails to."""
        return self.kept - self.unchanged - self.known_failures

    @property
    def done(self) -> int:
        """Images that this run has dealt with."""
        return self.embedded + self.failed

    @property
    def images_per_second(self) -> float:
        """Over all stages; 0.0 if there was nothing to do."""
        spent = sum(self.seconds.values())
        return self.done / spent if spent else 0.0


Progress = Callable[[Tally], None]


def embed_partition(
    partition_key: str,
    catalogue: pl.DataFrame,
    archive: Archive,
    encoder: Encoder,
    space: EmbeddingSpace,
    *,
    limits: Limits,
    batch_size: int,
    retry_failures: bool = False,
    progress: Progress = lambda _: None,
) -> Tally:
    """Bring the rows of one partition in line with the catalogue.

    Args:
        partition_key: such as ``07of64``.
        catalogue: kept images with the columns of ``catalog.SCHEMA``; those of other partitions are not looked at.
        archive: where their bytes are.
        encoder: of the space.
        space: where the rows go.
        limits: on one image.
        batch_size: images that are decoded, embedded and committed together.
        retry_failures: try images again that failed before with the same bytes.
        progress: told after every batch.

    Raises:
        ArchiveError: the archive changed, or became unreadable.
        ModelError: the model cannot be loaded.
        StoreError: the database went away.
    """
    first, last = partition_range(partition_key)
    kept = catalogue.filter(pl.col("sample_key").is_between(first, last))
    embedded, failed = space.known(first, last)
    departed = pl.concat([embedded, failed]).join(kept, on="image_id", how="anti")
    unchanged = kept.join(embedded, on=["image_id", "digest"], how="semi")
    known_failures = kept.clear() if retry_failures else kept.join(failed, on=["image_id", "digest"], how="semi")
    settled = pl.concat([unchanged, known_failures])
    pending = kept.join(settled, on="image_id", how="anti").sort("offset")

    tally = Tally(len(kept), len(unchanged), len(known_failures), removed=len(departed))
    space.remove(departed["image_id"].to_list())
    progress(tally)
    for batch in pending.iter_slices(batch_size):
        _embed_batch(batch.rows(named=True), archive, encoder, space, limits, tally)
        progress(tally)
    return tally


def _embed_batch(
    rows: Sequence[dict[str, Any]],
    archive: Archive,
    encoder: Encoder,
    space: EmbeddingSpace,
    limits: Limits,
    tally: Tally,
) -> None:
    """One batch from bytes to rows. A picture that fails costs itself only."""
    pictures: list[tuple[dict[str, Any], Image.Image]] = []
    failures: list[Failed] = []
    for row in rows:
        stage = READ
        try:
            with _timed(tally, READ):
                data = _read(archive, row, limits)
            stage = DECODE
            with _timed(tally, DECODE):
                pictures.append((row, decode(data, max_pixels=limits.max_pixels)))
        except ImageError as error:
            failures.append(_failed(row, stage, error.__cause__ or error, str(error)))
    with _timed(tally, ENCODE):
        vectors = encoder.encode_images([picture for _, picture in pictures]) if pictures else ()
    embedded: list[Embedded] = []
    for (row, _), vector in zip(pictures, vectors, strict=True):
        if np.isfinite(vector).all():
            embedded.append(Embedded(row["image_id"], row["sample_key"], row["digest"], vector))
        else:
            aimless = ImageError("the model gives it a vector without a direction (zero or not finite)")
            failures.append(_failed(row, ENCODE, aimless, str(aimless)))
    with _timed(tally, WRITE):
        space.write(embedded, failures)
    tally.embedded += len(embedded)
    tally.failed += len(failures)


def _read(archive: Archive, row: dict[str, Any], limits: Limits) -> bytes:
    if row["size"] > limits.max_file_bytes:
        raise ImageError(
            f"its file of {row['size']:,} bytes is over the limit of {limits.max_file_bytes:,} (ABO_MAX_FILE_BYTES)"
        )
    return archive.read_at(row["offset"], row["size"])


def _failed(row: dict[str, Any], stage: str, error: BaseException, message: str) -> Failed:
    return Failed(
        row["image_id"],
        row["sample_key"],
        row["digest"],
        stage,
        type(error).__name__,
        # Messages of decoders may quote the file's bytes; Postgres holds any text but NUL.
        message.replace("\x00", "�")[:1000],
    )


@contextmanager
def _timed(tally: Tally, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        tally.seconds[stage] += time.perf_counter() - started
