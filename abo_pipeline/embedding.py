"""One partition: what the catalogue has and the store lacks → vectors and failures.

A run compares the catalogue with the rows, does what is missing or changed, and forgets what left the catalogue; so
doing it again does nothing. Nothing is embedded under an image's id but the bytes that the catalogue counted as that
image, and the same bytes are embedded once, however many images have them.

The encoder says how many threads should be at work. Each takes a batch of images all the way from the archive to
vectors: while one waits for the disk or for its turn on a GPU, others compute, and no more is in memory than the
batches in hand. Rows are written from one more thread, as they come. An interruption costs the batches in hand. How
bytes become pixels, pixels vectors, and vectors rows is for ``decoding``, ``encoder`` and ``store``; how threads are
kept together, for ``stages``.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from abo_pipeline.archive import Archive, digest_of
from abo_pipeline.decoding import Pixels, decode, decode_pixels
from abo_pipeline.encoder import Encoder, Vectors
from abo_pipeline.errors import ArchiveError, FailuresError, ImageError
from abo_pipeline.sampling import partition_range
from abo_pipeline.settings import Settings
from abo_pipeline.stages import Collector, in_parallel
from abo_pipeline.store.spaces import Embedded, EmbeddingSpace, Failed, Reason

READ, DECODE, PREPARE, ENCODE, WRITE = STAGES = ("read", "decode", "prepare", "encode", "write")

_COMMIT_ROWS = 1000
"""At most so many rows are committed together, and as a rule those that came while the ones before were written: what
is not committed is lost when the process is killed."""


_FEWEST_IN_A_BATCH, _FRACTION = 4, 8
"""A batch is made smaller to this, or to so small a part of the usual one: less costs more than it saves."""


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
        left: of these, pending still, because only failures were to be tried again.
        removed: vectors and failures whose image left the catalogue.
        shared: of those embedded, the ones that got the vector of another image with the same bytes.
        seconds: spent in each stage, by all threads together.
        elapsed: seconds from the first image to the last.
        workers: threads that read, decode, prepare and encode.
    """

    kept: int
    unchanged: int = 0
    known_failures: int = 0
    embedded: int = 0
    failed: int = 0
    left: int = 0
    removed: int = 0
    shared: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    elapsed: float = 0.0
    workers: int = 1

    @property
    def to_do(self) -> int:
        """Images that this run embeds, or fails to."""
        return self.kept - self.unchanged - self.known_failures - self.left

    @property
    def done(self) -> int:
        """Images that this run has dealt with."""
        return self.embedded + self.failed

    @property
    def all_failed(self) -> int:
        """Images of the partition without a vector when the run ends."""
        return self.failed + self.known_failures

    @property
    def images_per_second(self) -> float:
        """From the first image to the last; 0.0 if there was nothing to do."""
        return self.done / self.elapsed if self.elapsed else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until the end, if it goes on like this; None before the first image."""
        return (self.to_do - self.done) / self.images_per_second if self.images_per_second else None

    @property
    def bottleneck(self) -> str:
        """The stage that keeps its threads busiest; none if there was nothing to do."""
        busy = {stage: spent / (1 if stage == WRITE else self.workers) for stage, spent in self.seconds.items()}
        return max(busy, key=busy.__getitem__) if any(busy.values()) else "none"


Progress = Callable[[Tally], None]

FEW_FAILURES = 10
"""So many failed images are accidents, whatever share of a small partition they are."""


def are_too_many(failed: int, kept: int, max_share: float) -> bool:
    """Whether so many failures mean that something is wrong, and not just with some images."""
    return failed > max(FEW_FAILURES, max_share * kept)


def refuse_too_many_failures(partition_key: str, tally: Tally, reasons: Sequence[Reason], max_share: float) -> None:
    """Let a partition pass in which few images failed. What is embedded and recorded stays so in any case.

    Args:
        partition_key: of the partition.
        tally: of its run.
        reasons: why its images failed, most frequent first.
        max_share: of its kept images, from 0 to 1.

    Raises:
        FailuresError: more failed.
    """
    if are_too_many(tally.all_failed, tally.kept, max_share):
        most = reasons[0]
        raise FailuresError(
            f"{tally.all_failed:,} of the {tally.kept:,} images of partition {partition_key} failed, and at most "
            f"{max_share:.0%} may (ABO_MAX_FAILED_SHARE). Most frequent: {most.images:,} × {most.error} at the stage "
            f"'{most.stage}', such as {most.example}. `abo failures` lists all of them; mend the cause, then "
            "`abo retry-failures`, or the job retry_failures_job."
        )


def embed_partition(
    partition_key: str,
    catalogue: pl.DataFrame,
    archive: Archive,
    encoder: Encoder,
    space: EmbeddingSpace,
    *,
    limits: Limits,
    batch_size: int | None = None,
    retry_failures: bool = False,
    only_failures: bool = False,
    get_ready: Callable[[], None] = lambda: None,
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
        batch_size: images of a forward pass; by default what the encoder is quickest with.
        retry_failures: try images again that failed before with the same bytes.
        only_failures: try those again and leave what is pending to another run.
        get_ready: called before the first image, if there is any.
        progress: told after every batch.

    Raises:
        ArchiveError: the archive is not, or no longer, the one that the catalogue was read from; batches that were done
            are committed, and nothing of this one is.
        ModelError: the model cannot be loaded.
        StoreError: the database went away.
    """
    first, last = partition_range(partition_key)
    kept = catalogue.filter(pl.col("sample_key").is_between(first, last))
    embedded, failed = space.known(first, last)
    departed = pl.concat([embedded, failed]).join(kept, on="image_id", how="anti")
    unchanged = kept.join(embedded, on=["image_id", "digest"], how="semi")
    known = kept.join(failed, on=["image_id", "digest"], how="semi")
    pending = kept.join(pl.concat([unchanged, known]), on="image_id", how="anti")
    left = pending if only_failures else kept.clear()
    tried_again = known if retry_failures or only_failures else kept.clear()
    to_do = pl.concat([pending.clear() if only_failures else pending, tried_again]).sort("offset")

    tally = Tally(len(kept), len(unchanged), len(known) - len(tried_again), left=len(left), removed=len(departed))
    space.remove(departed["image_id"].to_list())
    progress(tally)
    if len(to_do):
        get_ready()
        _embed(to_do, archive, encoder, space, limits, batch_size, tally, progress)
    return tally


@dataclass
class _Batch:
    """What became of a batch."""

    embedded: list[Embedded]
    failed: list[Failed]
    seconds: dict[str, float]
    shared: int = 0


def _embed(
    to_do: pl.DataFrame,
    archive: Archive,
    encoder: Encoder,
    space: EmbeddingSpace,
    limits: Limits,
    batch_size: int | None,
    tally: Tally,
    progress: Progress,
) -> None:
    """From bytes to rows; ``tally`` goes on with what is done."""
    # Loads the model, once a process: the images' speed should not depend on who comes first.
    tally.workers = encoder.workers
    started = time.perf_counter()
    images_with = _by_digest(to_do)

    def account_for(batch: _Batch) -> None:
        outcomes.put([*batch.embedded, *batch.failed])
        tally.embedded += len(batch.embedded)
        tally.failed += len(batch.failed)
        tally.shared += batch.shared
        for stage, spent in batch.seconds.items():
            tally.seconds[stage] += spent
        tally.seconds[WRITE] = outcomes.seconds_busy
        tally.elapsed = time.perf_counter() - started
        progress(tally)

    with Collector(partial(_write, space), _COMMIT_ROWS) as outcomes:
        known = space.vectors_of(list(images_with))
        if known:
            account_for(_known_batch(images_with, known))
        firsts = to_do.unique("digest", keep="first", maintain_order=True)
        firsts = firsts.filter(~pl.col("digest").is_in(list(known)))
        embed_one = partial(_embed_batch, archive=archive, encoder=encoder, limits=limits, images_with=images_with)
        batches = _batches(firsts, encoder, batch_size)
        with closing(in_parallel(embed_one, batches, tally.workers, enter_thread=encoder.enter_thread)) as results:
            for batch in results:
                account_for(batch)
    tally.seconds[WRITE] = outcomes.seconds_busy
    tally.elapsed = time.perf_counter() - started


def _batches(images: pl.DataFrame, encoder: Encoder, batch_size: int | None) -> Iterator[list[dict[str, Any]]]:
    """Rows in the archive's order; so many at a time as are best then, for a GPU may turn out to have less memory.

    They become smaller towards the end, so that all threads have something to do until then.
    """
    start = 0
    while start < len(images):
        size = batch_size or encoder.batch
        smallest = max(_FEWEST_IN_A_BATCH, size // _FRACTION)
        is_ours = batch_size is None and encoder.workers > 1
        while is_ours and size > smallest and size * encoder.workers > len(images) - start:
            size = (size + 1) // 2
        yield images.slice(start, size).rows(named=True)
        start += size


def _by_digest(to_do: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """The images with the same bytes."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in to_do.iter_rows(named=True):
        found.setdefault(row["digest"], []).append(row)
    return found


def _known_batch(images_with: Mapping[str, Sequence[dict[str, Any]]], known: Mapping[str, Vectors]) -> _Batch:
    """The images whose bytes have been embedded before, for an image of another partition."""
    embedded = [
        Embedded(row["image_id"], row["sample_key"], digest, vector)
        for digest, vector in known.items()
        for row in images_with[digest]
    ]
    return _Batch(embedded, [], {}, shared=len(embedded))


def _write(space: EmbeddingSpace, outcomes: Sequence[Embedded | Failed]) -> None:
    space.write(
        [outcome for outcome in outcomes if isinstance(outcome, Embedded)],
        [outcome for outcome in outcomes if isinstance(outcome, Failed)],
    )


def _embed_batch(
    rows: Sequence[dict[str, Any]],
    archive: Archive,
    encoder: Encoder,
    limits: Limits,
    images_with: Mapping[str, Sequence[dict[str, Any]]],
) -> _Batch:
    """One batch from bytes to vectors. A picture that fails costs itself only, and those that are the same."""
    batch = _Batch([], [], dict.fromkeys(STAGES, 0.0))
    decoded: list[str] = []

    def fail(digest: str, stage: str, error: BaseException, message: str) -> None:
        batch.failed += [_failed(row, stage, error, message) for row in images_with[digest]]

    def pictures() -> Iterator[Pixels]:
        for row in rows:
            stage = READ
            try:
                with _timed(batch.seconds, READ):
                    data = read_image(archive, row, limits)
                stage = DECODE
                with _timed(batch.seconds, DECODE):
                    picture = decode_pixels(data, max_pixels=limits.max_pixels)
            except ImageError as error:
                fail(row["digest"], stage, error.__cause__ or error, str(error))
            else:
                decoded.append(row["digest"])
                yield picture

    # Each is prepared as soon as it is decoded: at full size they may be a hundred times as large.
    with _timed(batch.seconds, PREPARE):
        prepared = encoder.prepare(pictures(), len(rows))
    batch.seconds[PREPARE] -= batch.seconds[READ] + batch.seconds[DECODE]
    if not decoded:
        return batch
    with _timed(batch.seconds, ENCODE):
        vectors = encoder.encode_prepared(prepared)
    have_direction = np.all(np.isfinite(vectors), axis=1)
    for digest, vector, has_direction in zip(decoded, vectors, have_direction, strict=True):
        if has_direction:
            same = images_with[digest]
            batch.embedded += [Embedded(row["image_id"], row["sample_key"], digest, vector) for row in same]
            batch.shared += len(same) - 1
        else:
            aimless = ImageError("the model gives it a vector without a direction (zero or not finite)")
            fail(digest, ENCODE, aimless, str(aimless))
    return batch


def read_image(archive: Archive, row: Mapping[str, Any], limits: Limits) -> bytes:
    """The image's bytes, and no others: an archive that was replaced may hold anything where this image was.

    Args:
        archive: where they are.
        row: image_id, digest, and offset and size in the archive.
        limits: on one image.

    Raises:
        ImageError: its file is over the limit.
        ArchiveError: the archive changed while it was open, or is another one than the catalogue's.
    """
    if row["size"] > limits.max_file_bytes:
        raise ImageError(
            f"its file of {row['size']:,} bytes is over the limit of {limits.max_file_bytes:,} (ABO_MAX_FILE_BYTES)"
        )
    is_within = row["offset"] + row["size"] <= archive.bytes
    data = archive.read_at(row["offset"], row["size"]) if is_within else b""
    if not is_within or digest_of([data]) != row["digest"]:
        raise _not_the_image(archive, row)
    return data


def picture_of(archive: Archive, row: Mapping[str, Any], limits: Limits) -> Image.Image:
    """The image's pixels.

    Takes what ``read_image`` takes, and raises what that raises; ``ImageError`` also where it cannot be decoded.
    """
    return decode(read_image(archive, row, limits), max_pixels=limits.max_pixels)


def _not_the_image(archive: Archive, row: Mapping[str, Any]) -> ArchiveError:
    where = f"where image {row['image_id']} was, it holds other bytes"
    same_place = (pl.col("offset") == row["offset"]) & (pl.col("digest") == row["digest"])
    if len(archive.index.filter(same_place)):
        # Its index is taken for good as long as size and time are the same, so running again would end here again.
        return ArchiveError(
            f"{archive.path} has changed since it was indexed, though its size and time are the same: {where}. Put "
            "back what it was, for the disk may be damaged; if it is meant to be so, `touch` it, and use `abo run`."
        )
    return ArchiveError(
        f"{archive.path} is not the archive that the catalogue was read from: {where}. Materialize raw_archive and "
        "image_paths again, or use `abo run`, which does."
    )


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
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - started
