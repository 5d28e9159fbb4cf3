"""A space's vectors as one parquet file: exported here, imported on another machine after a check of their truth.

The file holds what makes a vector one of a certain image by a certain model: the image's id and digest, the model's
fingerprint. What is imported has to be embedded by the very model that is used here, which is tried on some of its
images before anything is accepted; and of the rest only what the catalogue here has, with the same bytes. How rows
leave a database and enter one is for ``store``; how they are embedded, for ``embedding``.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice, pairwise
from pathlib import Path
from threading import Event
from typing import Any, Self, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image
from polars.io.plugins import register_io_source

from abo_pipeline.archive import Archive
from abo_pipeline.catalog import member_name
from abo_pipeline.download import write_whole
from abo_pipeline.embedding import Limits, picture_of
from abo_pipeline.encoder import Encoder, Vectors
from abo_pipeline.errors import ImageError, PortableError
from abo_pipeline.fidelity import Fidelity
from abo_pipeline.pictures import open_images
from abo_pipeline.sampling import sample_key
from abo_pipeline.settings import Settings
from abo_pipeline.store import EmbeddingSpace, Store
from abo_pipeline.store.spaces import NORM_TOLERANCE, Adopted, Embedded
from abo_pipeline.store.transfer import Row, catalogue_images, embedded_rows

FORMAT = "abo_pipeline embeddings"
FORMAT_VERSION = "1"
"""Counts up when what a file holds, or means, changes."""

PRECISIONS = {"float32": pl.Float32, "float16": pl.Float16}
"""How exactly a file holds its vectors. float16 is half as large, and rounds: the cosine of a vector with what comes
back of it is at least 0.99999."""

CHECKED = 32
"""Images of a file that are embedded again before it is accepted, unless asked otherwise."""

LEAST_COSINE = 0.999
"""Of a vector in a file with the one that the same image gets here. Another machine's arithmetic costs some 0.000001,
another version of a model much more than this allows."""

_TEXTS = ("image_id", "path", "digest", "fingerprint")
_DIGEST = "^[0-9a-f]{32}$"
# As a catalogue takes them.
_NO_ID = r"[\s\x00-\x1f\x{FFFD}]"
# A block of 4,096 vectors of 512 dimensions is 8 MB: some of them are in memory at once.
_BLOCK_ROWS = 4096
_T = TypeVar("_T")
_POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


@dataclass(frozen=True)
class Exported:
    """A file that was written: its path, how many vectors and bytes it has, and how long that took."""

    path: Path
    rows: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Imported:
    """What became of a file.

    Attributes:
        rows: vectors in the file.
        adopted: what became of them; sums up to ``rows``.
        checked: images that were embedded again here.
        least_cosine: of these, between the file's vector and the one that came out here.
        seconds: that it took.
    """

    rows: int
    adopted: Adopted
    checked: int
    least_cosine: float
    seconds: float


def _no_count(done: int, total: int) -> None:
    """Progress that nobody asked for."""


def _no_stage(stage: str, done: int, total: int) -> None:
    """Likewise."""


# --- Export ---


def export_space(
    space: EmbeddingSpace,
    path: Path,
    *,
    catalogue: str,
    precision: str = "float32",
    progress: Callable[[int, int], None] = _no_count,
) -> Exported:
    """Write the vectors of a space to a parquet file: those of the catalogue's images, in its order, at one moment.

    The file appears under its name when it is whole, and takes the place of one that is there.

    Args:
        space: whose vectors.
        path: of the file.
        catalogue: the name of the catalogue that the space belongs to, for the file's description.
        precision: float32 for the very same vectors, float16 for half the bytes.
        progress: told how many vectors of how many are written.

    Raises:
        PortableError: there is nothing to export, the precision is unknown, or the file cannot be written.
        StoreError: the vectors are not sound, or the database goes away.
    """
    started = time.perf_counter()
    if precision not in PRECISIONS:
        raise PortableError(f"There is no precision {precision!r}; there are {' and '.join(PRECISIONS)}.")
    _require_place(path)
    space.require_sound()
    with embedded_rows(space) as (count, rows):
        if not count:
            raise PortableError(
                f"Space {space.name} has no vector of an image of the catalogue {catalogue}. Run `abo run` first."
            )
        description = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": space.model,
            "space": space.name,
            "dimension": str(space.dimension),
            "fingerprint": space.fingerprint,
            "made": Store(space.engine).made_for(space.name),
            "precision": precision,
            "catalogue": catalogue,
            "count": str(count),
        }
        schema = _schema(precision, space.dimension)
        content = _content()
        frames = (_frame(block, schema, precision, content) for block in _batches(rows, _BLOCK_ROWS))
        counted = _counted(frames, count, progress)
        try:
            write_whole(path, partial(_sink, counted, schema, lambda: description | {"content": content.hexdigest()}))
        except _POLARS_ERRORS as error:
            raise PortableError(
                f"The export cannot be written to {path}: {_first_line(error)} Make room there, or name another place."
            ) from error
    return Exported(path, count, path.stat().st_size, time.perf_counter() - started)


def _require_place(path: Path) -> None:
    """See that a file can be written there, before all that is to be in it is read."""
    folder = path.absolute().parent
    try:
        reason = "it is a folder" if path.is_dir() else "" if folder.is_dir() else f"there is no folder {folder}"
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise PortableError(f"The export cannot be written to {path}: {reason}.")


def _schema(precision: str, dimension: int) -> pl.Schema:
    known: dict[str, pl.DataType] = {
        "image_id": pl.String(),
        "path": pl.String(),
        "sample_key": pl.Int64(),
        "digest": pl.String(),
        "fingerprint": pl.String(),
    }
    return pl.Schema(known | {"embedding": pl.Array(PRECISIONS[precision], dimension)})


def _content() -> blake2b:
    """A digest to be fed with all vectors of a file, as they are there.

    It tells a file that was damaged on its way: whether a vector has length 1, and comes out again here, does not tell
    of every bit, and not of every vector.
    """
    return blake2b(digest_size=16)


def _frame(rows: Sequence[Row], schema: pl.Schema, precision: str, content: blake2b) -> pl.DataFrame:
    *known, vectors = zip(*rows, strict=True)
    numbers = np.stack(vectors).astype(precision)
    content.update(numbers.tobytes())
    return pl.DataFrame(dict(zip(schema.names(), (*known, numbers), strict=True)), schema=schema)


def _counted(
    frames: Iterable[pl.DataFrame], total: int, progress: Callable[[int, int], None]
) -> Iterator[pl.DataFrame]:
    done = 0
    progress(done, total)
    for frame in frames:
        yield frame
        done += len(frame)
        progress(done, total)


def _sink(
    frames: Iterator[pl.DataFrame], schema: pl.Schema, describe: Callable[[], dict[str, str]], path: Path
) -> None:
    """Write frames to a file one after the other, and what describes them when the last one is there.

    In another thread: called from the main one, polars turns a Ctrl-C into a KeyboardInterrupt and leaves Python's own
    for later, where it interrupts the cleaning up.
    """
    abandoned = Event()

    def source(*_: object) -> Iterator[pl.DataFrame]:
        for frame in frames:
            if abandoned.is_set():
                raise InterruptedError("the export was interrupted")
            yield frame

    write = partial(
        register_io_source(source, schema=schema).sink_parquet,
        compression="zstd",
        row_group_size=_BLOCK_ROWS,
        metadata=lambda _: describe(),
    )
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(write, path).result()
        finally:
            abandoned.set()


# --- Import ---


def import_space(
    path: Path,
    store: Store,
    encoder: Encoder,
    settings: Settings,
    *,
    check: int = CHECKED,
    progress: Callable[[str, int, int], None] = _no_stage,
) -> Imported:
    """Take in the vectors of a file that ``export_space`` wrote, on this or another machine.

    All of the file is looked at, and some of its images are embedded again, before anything is accepted. Of an image
    that is in this catalogue with the very same bytes the vector is stored, unless it is embedded here already; the
    rest is counted and left out. Blocks are committed one by one: an import that was interrupted is gone on with by
    doing it again.

    Args:
        path: of the file.
        store: with the catalogue.
        encoder: of the space.
        settings: name the space, which is made if it is not there, and the archive that the catalogue was read from.
        check: how many images to embed again, at least 1; spread over the file, the same ones each time.
        progress: told what is done (checking, comparing, importing), with how many images of how many.

    Raises:
        PortableError: the file is no whole export, is of another model, or did not pass the check.
        ArchiveError: the archive cannot be had, or is not the one that the catalogue was read from.
        ModelError: the model cannot be loaded.
        StoreError: the space holds vectors of another model, or the database goes away.
    """
    started = time.perf_counter()
    if check < 1:
        raise PortableError(f"{check} images are to be checked; at least 1 has to be.")
    export = _Export.open(path)
    matching = _require_same_model(export, encoder).made_as(export.made)
    there = store.find_space(settings.space_name)
    if there:
        # Before anything is compared; a space that is made for this is made when all is well.
        store.open_space(there.name, matching)
        _require_same_made(export, store, there)
    # A model that was made for it has to be there: one that would be made here may be another.
    matching.make_ready(lambda: (), lambda _: None)
    common, content = _common(export, store, progress)
    if not len(common):
        raise PortableError(
            f"None of the {export.rows:,} images in {path} is in the catalogue {settings.catalogue} with the same "
            "bytes, so that nothing can be checked, and nothing was accepted. Is it an export of this archive? "
            "`abo run --until image_paths` reads the archive's catalogue, if that has not been done yet."
        )
    chosen = common[np.unique(np.linspace(0, len(common) - 1, min(check, len(common))).round().astype(int))]
    cosines = _cosines(export, chosen, store, matching, settings, progress)
    _require_same_vectors(export, cosines)
    if content != export.content:
        raise PortableError(f"{path} is damaged: its vectors are not those that were exported. {_REMEDY}")
    store.open_space(settings.space_name, matching)
    fidelity = Fidelity(matching.precision, "it was imported", made=export.made)
    space = store.settle_space(settings.space_name, matching, asdict(fidelity))
    space.require_encoder(matching)
    _require_same_made(export, store, space)
    adopted = Adopted()
    with space.being_written():
        for start, images in export.blocks():
            adopted += space.adopt(images)
            progress("importing", start + len(images), export.rows)
    least = min(cosines.values())
    return Imported(export.rows, adopted, len(cosines), least, time.perf_counter() - started)


class _Export:
    """A file that says of itself that it is a whole export.

    Attributes:
        path: where it is.
        rows: how many vectors it has.
        model, fingerprint, made: what they were made with.
        content: the digest of all its vectors, as they were exported.
    """

    def __init__(self, path: Path, rows: int, description: dict[str, str], stamp: tuple[int, ...]) -> None:
        self.path = path
        self.rows = rows
        self.model = description["model"]
        self.fingerprint = description["fingerprint"]
        self.made = description.get("made", "")
        self.content = description["content"]
        self._stamp = stamp

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read what the file says of itself.

        Raises:
            PortableError: it cannot be read, is cut off, or is no export in a format that is known here.
        """
        try:
            if not path.is_file():
                raise PortableError(f"{path} does not exist, or is no file. Give a file that `abo export` has written.")
            stamp = _stamp(path)
            description = pl.read_parquet_metadata(path)
            schema = pl.read_parquet_schema(path)
            rows = pl.scan_parquet(path).select(pl.len()).collect().item()
        except _POLARS_ERRORS as error:
            raise _broken(path, error) from error
        _require_format(path, description, pl.Schema(schema), rows)
        return cls(path, rows, description, stamp)

    def blocks(self, content: blake2b | None = None) -> Iterator[tuple[int, list[Embedded]]]:
        """The file's vectors by blocks, each with the number of its first row, once all of it has proved sound.

        Args:
            content: fed with the vectors as they are in the file.

        Raises:
            PortableError: it is not; or the file was replaced since it was opened.
        """
        last = (-1, "")
        for start in range(0, self.rows, _BLOCK_ROWS):
            frame = self._read(start)
            last = self._require_sound(frame, last)
            stored = frame["embedding"].to_numpy()
            if content is not None:
                content.update(stored.tobytes())
            vectors = self._unit(stored, frame["image_id"])
            known = zip(frame["image_id"], frame["sample_key"], frame["digest"], vectors, strict=True)
            yield start, [Embedded(*row) for row in known]

    def _read(self, start: int) -> pl.DataFrame:
        try:
            frame = pl.scan_parquet(self.path).slice(start, _BLOCK_ROWS).collect()
            is_same = _stamp(self.path) == self._stamp
        except _POLARS_ERRORS as error:
            raise _broken(self.path, error) from error
        if not is_same:
            raise PortableError(f"{self.path} changed while it was being read. Import it when it is complete.")
        return frame

    def _require_sound(self, frame: pl.DataFrame, last: tuple[int, str]) -> tuple[int, str]:
        """See that rows are what an export has; gives the place of the last one."""
        if sum(frame.null_count().row(0)):
            raise self._wrong("a row has no value in a column")
        for wrong, words in (
            (pl.col("image_id").str.contains(_NO_ID) | (pl.col("image_id") == ""), "an id that no image has"),
            (~pl.col("digest").str.contains(_DIGEST), "a digest that is none"),
            (pl.col("fingerprint") != self.fingerprint, "another fingerprint than the file"),
        ):
            found = frame.filter(wrong)
            if len(found):
                raise self._wrong(f"image {found['image_id'][0]!r} has {words}")
        places = [last, *frame.select("sample_key", "image_id").iter_rows()]
        for place, (key, image_id) in pairwise(places):
            if key != sample_key(image_id):
                raise self._wrong(f"the sample key of image {image_id} is {key}, and not {sample_key(image_id)}")
            if place >= (key, image_id):
                raise self._wrong(f"image {image_id} is there twice, or out of order")
        return places[-1]

    def _unit(self, stored: NDArray[Any], image_ids: pl.Series) -> Vectors:
        """(rows, dimension) float32, each of length 1: as they are, or renormalised where they were rounded."""
        vectors: Vectors = stored.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        # Not within, so that NaN is found too.
        off = np.flatnonzero(~(np.abs(lengths[:, 0] - 1) <= NORM_TOLERANCE))
        if len(off):
            raise self._wrong(
                f"the vector of image {image_ids[int(off[0])]} has the length {lengths[off[0], 0]:.4g} instead of 1"
            )
        return vectors if stored.dtype == np.float32 else vectors / lengths

    def _wrong(self, what: str) -> PortableError:
        return PortableError(f"{self.path} is not as `abo export` writes it: {what}. Nothing was accepted. {_REMEDY}")


_REMEDY = "Copy the file again from where it was exported, or export it anew."


def _require_format(path: Path, description: dict[str, str], schema: pl.Schema, rows: int) -> None:
    """See that a file is an export, of this version, and has the columns and the rows that it should.

    Raises:
        PortableError: it is not, or has not.
    """
    if description.get("format") != FORMAT:
        raise PortableError(
            f"{path} is a parquet file, but no export of embeddings. Give a file that `abo export` has written."
        )
    if (version := description.get("format_version")) != FORMAT_VERSION:
        raise PortableError(
            f"{path} has version {version} of the format, and this abo_pipeline knows {FORMAT_VERSION}. "
            "Use the same abo_pipeline here as where it was exported."
        )
    try:
        expected = _schema(description["precision"], int(description["dimension"]))
        _, count = (description["model"], description["fingerprint"], description["content"]), int(description["count"])
    except (KeyError, ValueError) as error:
        raise PortableError(f"{path} lacks a part of its description, or has a wrong one: {error}. {_REMEDY}") from None
    if schema != expected:
        raise PortableError(
            f"{path} has other columns than an export: {_columns(schema)} instead of {_columns(expected)}. {_REMEDY}"
        )
    if rows != count or not rows:
        raise PortableError(f"{path} holds {rows:,} of its {count:,} vectors. {_REMEDY}")


def _columns(schema: pl.Schema) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in schema.items())


def _require_same_model(export: _Export, encoder: Encoder) -> Encoder:
    matching = encoder.matching(export.fingerprint)
    if matching is None:
        raise PortableError(
            f"{export.path} holds vectors of {export.model} (fingerprint {export.fingerprint}), and {encoder.model} "
            f"has fingerprint {encoder.fingerprint} here: they cannot be compared. A fingerprint tells the model's "
            "files, how pictures are decoded, and the precision. Name the same model with ABO_MODEL, and use the same "
            "abo_pipeline."
        )
    return matching


def _require_same_made(export: _Export, store: Store, space: EmbeddingSpace) -> None:
    if store.is_settled(space) and (there := store.made_for(space.name)) != export.made:
        raise PortableError(
            f"{export.path} holds vectors that were computed by the model {export.made!r}, which was made for that, "
            f"and space {space.name} has those of {there!r}: they cannot be mixed. Import into another space with "
            "--space (ABO_SPACE)."
        )


def _common(export: _Export, store: Store, progress: Callable[[str, int, int], None]) -> tuple[NDArray[np.int64], str]:
    """Which rows of a file are of images that the catalogue has, with the same bytes; and the digest of its vectors.

    All of the file is looked at.
    """
    content = _content()
    numbers = [np.empty(0, dtype=np.int64)]
    for start, images in export.blocks(content):
        catalogue = catalogue_images(store, [image.image_id for image in images])
        digests = dict(catalogue.select("image_id", "digest").iter_rows())
        is_common = [digests.get(image.image_id) == image.digest for image in images]
        numbers.append(start + np.flatnonzero(is_common))
        progress("checking", start + len(images), export.rows)
    return np.concatenate(numbers), content.hexdigest()


def _cosines(
    export: _Export,
    numbers: NDArray[np.int64],
    store: Store,
    encoder: Encoder,
    settings: Settings,
    progress: Callable[[str, int, int], None],
) -> dict[str, float]:
    """The cosines of rows of a file with what their images become here, by image.

    A picture that is not embedded here, because it is beyond the limits or cannot be decoded, is passed over.
    """
    cosines: dict[str, float] = {}
    done = 0
    with open_images(settings) as archive:
        for batch in _batches(_chosen(export, numbers), encoder.batch):
            pictures = list(_pictures(batch, store, archive, Limits.of(settings)))
            if pictures:
                vectors = encoder.encode_images([picture for _, picture in pictures])
                for (image, _), vector in zip(pictures, vectors, strict=True):
                    cosines[image.image_id] = _cosine(vector, image.vector)
            done += len(batch)
            progress("comparing", done, len(numbers))
    return cosines


def _cosine(one: Vectors, other: Vectors) -> float:
    """Of two vectors of about length 1; NaN if they are not of the same space."""
    return float(one @ other / np.linalg.norm(other)) if one.shape == other.shape else float("nan")


def _chosen(export: _Export, numbers: NDArray[np.int64]) -> Iterator[Embedded]:
    """Rows of a file by their numbers."""
    for start, images in export.blocks():
        within = numbers[(numbers >= start) & (numbers < start + len(images))]
        yield from (images[number - start] for number in within)


def _pictures(
    images: Sequence[Embedded], store: Store, archive: Archive, limits: Limits
) -> Iterator[tuple[Embedded, Image.Image]]:
    catalogue = catalogue_images(store, [image.image_id for image in images])
    members = {image_id: member_name(path) for image_id, path in catalogue.select("image_id", "path").iter_rows()}
    places = archive.index.filter(pl.col("member").is_in(list(members.values())))
    where = {member: (offset, size) for member, offset, size in places.select("member", "offset", "size").iter_rows()}
    for image in images:
        # What is not in the archive at all is nowhere in it, and does not have the image's bytes.
        offset, size = where.get(members.get(image.image_id, ""), (0, 0))
        row = {"image_id": image.image_id, "digest": image.digest, "offset": offset, "size": size}
        try:
            yield image, picture_of(archive, row, limits)
        except ImageError:
            continue


def _require_same_vectors(export: _Export, cosines: dict[str, float]) -> None:
    """See that the images which were embedded again came out as the file has them.

    Raises:
        PortableError: one did not, or none could be embedded.
    """
    if not cosines:
        raise PortableError(
            f"No image of {export.path} that was chosen for the check can be embedded here: they are over the limits, "
            "or cannot be decoded. Nothing was accepted. Check more images (--check), or raise ABO_MAX_PIXELS and "
            "ABO_MAX_FILE_BYTES to what they were there."
        )
    # A NaN is at least nothing.
    wrong = {image_id: cosine for image_id, cosine in cosines.items() if not cosine >= LEAST_COSINE}
    if wrong:
        worst = min(wrong, key=lambda image_id: np.nan_to_num(wrong[image_id], nan=-2.0))
        raise PortableError(
            f"Of {len(cosines)} images of {export.path} that were embedded again here, {len(wrong)} came out "
            f"differently: {worst} most, its cosine with the file's vector is {wrong[worst]:.4f}, and at least "
            f"{LEAST_COSINE} is asked for. Nothing was accepted. Export again from where it was made, or embed here "
            "with `abo run`."
        )


def _batches(items: Iterable[_T], size: int) -> Iterator[tuple[_T, ...]]:
    """What ``itertools.batched`` does, from Python 3.12 on."""
    rest = iter(items)
    while batch := tuple(islice(rest, size)):
        yield batch


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _broken(path: Path, error: BaseException) -> PortableError:
    return PortableError(f"{path} cannot be read as a whole parquet file: {_first_line(error)} {_REMEDY}")


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), type(error).__name__).strip()
    return line if line.endswith(".") else f"{line}."
