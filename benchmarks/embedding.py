"""How fast photographs become vectors: the seed's loop, sentence-transformers at its best, ours, and what limits it.

    python -m benchmarks.embedding --images abo-images-small.tar --out results
    python -m benchmarks.embedding --images abo-images-small.tar --model clip-ViT-B-32 --precisions bfloat16 --rounds 1
    python -m benchmarks.embedding --images abo-images-small.tar --memory 20000 --reading 400000
    python -m benchmarks.embedding --images abo-images-small.tar --copies 12 --part 50000  # on a GPU

The same images and weights in one run, in turns: every way embeds some images, then each the next ones, so that
whatever else the machine does slows all of them alike; the median round counts. "The seed's loop" opens the files of a
batch and calls ``model.encode``. "Forward" is each precision's own ceiling: pixels that are ready, on as many threads,
and nothing else. "Ours" is ``embed_partition``, from the tar to vectors; "into Postgres" is all of it, rows included.
Without ``--model`` it is ViT-B/32 with random weights, made in a temporary folder.

On a GPU the claim is another one: so many images a second from the tar to vectors. There the ways of others are
measured on some of the images only, and what a busy neighbour does is not.

Prints tables and what holds of the claims; into ``--out`` go ``embedding.json`` and a picture of the stages.
"""

import argparse
import gzip
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
from PIL import Image

from abo_pipeline.archive import Archive
from abo_pipeline.catalog import CSV_COLUMNS, CSV_MEMBER, member_name, read_catalogue
from abo_pipeline.decoding import Pixels, decode_pixels
from abo_pipeline.embedding import DECODE, ENCODE, PREPARE, READ, STAGES, WRITE, Limits, Tally, embed_partition
from abo_pipeline.encoder import ClipEncoder
from abo_pipeline.errors import ImageError, ModelError
from abo_pipeline.fidelity import Fidelity, Sample, compare, embed
from abo_pipeline.openvino_tower import CALIBRATION_IMAGES
from abo_pipeline.settings import Settings
from abo_pipeline.stages import in_parallel
from abo_pipeline.store import Store
from abo_pipeline.store.spaces import Embedded, EmbeddingSpace, Failed
from benchmarks.bars import CONSOLE, Bar, print_bars, print_table, save
from benchmarks.models import make_clip
from benchmarks.stores import fresh_store

WHOLE = "00of1"
BFLOAT16, FLOAT16, INT8 = "bfloat16", "float16", "int8"
PRECISIONS = {"cpu": ("float32", BFLOAT16, INT8), "gpu": ("float32", FLOAT16)}
SEEDS_BATCH = 32
OF_SEED = {BFLOAT16: 2.0, INT8: 3.5}
OF_CEILING, CHAIN_OF_CEILING, BESIDE_A_NEIGHBOUR = 0.96, 0.93, 0.6
ON_A_GPU = 10_000.0
MOST_MEMORY_GB, FLAT, FIRST_VECTOR_SECONDS = 2.5, 1.05, 15.0
INDEX_SECONDS, INDEX_MEMORY_MB = 60.0, 500.0

_LIMITS = Limits(10**8, 10**8)
_COMPARED = 512
_SOME = 2_048


@dataclass
class Way:
    """How images become vectors, and how fast, a round each.

    Attributes:
        name: for the table.
        embed: takes rows of the catalogue.
        most: images of a round that it is given; by default all.
        rates: images per second.
        tallies: of the rounds, where it is ours.
    """

    name: str
    embed: Callable[[pl.DataFrame], Tally | None]
    most: int | None = None
    rates: list[float] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rates) if self.rates else float("nan")

    def go(self, rows: pl.DataFrame) -> None:
        """One round."""
        rows = rows.head(self.most or len(rows))
        started = time.perf_counter()
        tally = self.embed(rows)
        self.rates.append(len(rows) / (time.perf_counter() - started))
        if tally:
            self.tallies.append(tally)


class Nowhere(EmbeddingSpace):
    """A space that knows nothing and keeps nothing."""

    def __init__(self) -> None:
        self.written = 0

    def known(self, first: int, last: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Nothing."""
        del first, last
        nothing = pl.DataFrame(schema={"image_id": pl.String, "digest": pl.String})
        return nothing, nothing

    def vectors_of(self, digests: Sequence[str]) -> dict[str, Any]:
        """None."""
        del digests
        return {}

    def remove(self, image_ids: Sequence[str]) -> None:
        """There is nothing to remove."""

    def write(self, embedded: Sequence[Embedded], failed: Sequence[Failed]) -> None:
        """Count."""
        self.written += len(embedded) + len(failed)


class Embedding:
    """The ways, on an archive's images."""

    def __init__(self, archive: Archive, catalogue: pl.DataFrame, model: str, folder: Path) -> None:
        self.archive = archive
        self.catalogue = catalogue
        self.model = model
        self.folder = folder
        self.sample = Sample(catalogue, archive, _LIMITS)
        self.kind = kind_of_device(model)

    def encoder(self, precision: str) -> ClipEncoder:
        """Ours, with what has to be made once made."""
        encoder = ClipEncoder(self.model, "", precision, folder=self.folder)
        started = time.perf_counter()
        encoder.make_ready(lambda: self.sample.pictures(CALIBRATION_IMAGES), print)
        if (seconds := time.perf_counter() - started) > 5:
            CONSOLE.print(f"{precision} was made ready in {seconds:.0f} s, which happens once.")
        encoder.encode_images(list(self.sample.pictures(2)))
        return encoder

    def seeds_loop(self) -> Way:
        """Files opened in order, ``model.encode`` batch by batch, all cores on each batch."""
        model = self._sentence_transformer()

        def loop(rows: pl.DataFrame) -> None:
            for batch in rows.iter_slices(SEEDS_BATCH):
                model.encode(self._opened(batch), batch_size=SEEDS_BATCH, show_progress_bar=False)

        return Way("the seed's loop", loop, self._of_others())

    def sentence_transformers(self) -> Way:
        """What its documentation offers for speed: half precision, and one call for all."""
        import torch

        precision = FLOAT16 if self.kind == "gpu" else BFLOAT16
        model = self._sentence_transformer(model_kwargs={"dtype": getattr(torch, precision)})

        def encode(rows: pl.DataFrame) -> None:
            model.encode(self._opened(rows), batch_size=SEEDS_BATCH, show_progress_bar=False)

        return Way(f"sentence-transformers, {precision}", encode, self._of_others())

    def ours(self, encoder: ClipEncoder, name: str = "") -> Way:
        """From the tar to vectors."""

        def run(rows: pl.DataFrame) -> Tally:
            return embed_partition(WHOLE, rows, self.archive, encoder, Nowhere(), limits=_LIMITS)

        return Way(name or f"ours, {encoder.precision}", run)

    def chain(self, encoder: ClipEncoder, space: EmbeddingSpace) -> Way:
        """From the tar to rows in Postgres, in which nothing of these images is yet."""

        def run(rows: pl.DataFrame) -> Tally:
            space.remove(rows["image_id"].to_list())
            return embed_partition(WHOLE, rows, self.archive, encoder, space, limits=_LIMITS)

        return Way(f"ours, {encoder.precision}, into Postgres", run)

    def forward(self, encoder: ClipEncoder) -> Way:
        """The model alone, on as many threads."""
        ready = encoder.prepare(self.sample.pictures(encoder.batch), encoder.batch)

        def run(rows: pl.DataFrame) -> None:
            batches = range(-(-len(rows) // encoder.batch))
            for _ in in_parallel(
                lambda _: encoder.encode_prepared(ready), batches, encoder.workers, enter_thread=encoder.enter_thread
            ):
                pass

        return Way(f"forward alone, {encoder.precision}", run)

    def decoding(self, encoder: ClipEncoder) -> Way:
        """All but the model, on as many threads."""

        def one(batch: pl.DataFrame) -> int:
            # Not the batch itself: a queue of them would hold as much pinned memory.
            return len(encoder.prepare(self._decoded(batch), len(batch)))

        def run(rows: pl.DataFrame) -> None:
            batches = rows.iter_slices(encoder.batch)
            for _ in in_parallel(one, batches, encoder.workers, enter_thread=encoder.enter_thread):
                pass

        return Way("read, decode and prepare alone", run)

    def fidelity(self, precisions: Sequence[str]) -> list[Fidelity]:
        """How true each precision is to the reference."""
        pictures = list(self.sample.pictures(_COMPARED))
        first = self.encoder("float32")
        reference = embed(first.reference, pictures)
        return [compare(self.encoder(precision), reference, pictures) for precision in precisions]

    def _of_others(self) -> int | None:
        """Images of a round for the ways of others, which on a GPU would take minutes for all."""
        return _SOME if self.kind == "gpu" else None

    def _sentence_transformer(self, **arguments: Any) -> Any:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(self.model, **arguments)

    def _opened(self, rows: pl.DataFrame) -> list[Image.Image]:
        return [
            Image.open(io.BytesIO(self.archive.read_at(row["offset"], row["size"]))).convert("RGB")
            for row in rows.iter_rows(named=True)
        ]

    def _decoded(self, rows: pl.DataFrame) -> Iterator[Pixels]:
        for row in rows.iter_rows(named=True):
            with suppress(ImageError):
                yield decode_pixels(self.archive.read_at(row["offset"], row["size"]), max_pixels=10**8)


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Another process that computes all the time."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def parts(catalogue: pl.DataFrame, images: int) -> Iterator[pl.DataFrame]:
    """So many images after another, from the start again when there are no more; none of them twice in a part."""
    while True:
        for start in range(0, len(catalogue) - images + 1, images):
            yield catalogue.slice(start, images)


def alone(function: str, *arguments: object) -> Any:
    """What a function of this module gives in a process of its own, where nothing else takes memory or time."""
    code = f"import json, sys; from benchmarks import embedding; print(json.dumps(embedding.{function}(*sys.argv[1:])))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 - ours
    return json.loads(said.splitlines()[-1])


def memory_of(images: str, model: str, folder: str, precision: str, count: str) -> list[tuple[int, float]]:
    """This process's memory in GB after so many images, several times on the way."""
    found, done = [], 0
    with tempfile.TemporaryDirectory() as index, opened(Path(images), Path(index)) as (archive, catalogue):
        encoder = ClipEncoder(model, "", precision, folder=Path(folder))
        encoder.make_ready(lambda: Sample(catalogue, archive, _LIMITS).pictures(CALIBRATION_IMAGES), print)
        while done < int(count):
            part = catalogue.head(min(int(count) - done, 2_000))
            embed_partition(WHOLE, part, archive, encoder, Nowhere(), limits=_LIMITS)
            done += len(part)
            found.append((done, psutil.Process().memory_info().rss / 1e9))
    return found


def first_vector(images: str, model: str) -> float:
    """Seconds from the start of this process to its first vector, which it makes now."""
    with tempfile.TemporaryDirectory() as index, opened(Path(images), Path(index)) as (archive, catalogue):
        encoder = ClipEncoder(model, "", FLOAT16 if kind_of_device(model) == "gpu" else BFLOAT16)
        embed_partition(WHOLE, catalogue.head(1), archive, encoder, Nowhere(), limits=_LIMITS)
        return time.time() - psutil.Process().create_time()


def index_of(tar: str, folder: str) -> tuple[float, float]:
    """Seconds that it takes to index a tar, and by how many MB this process's peak of memory rises with it."""
    before, started = _peak_mb(), time.perf_counter()
    Archive.open(Path(tar), Path(folder)).close()
    return time.perf_counter() - started, _peak_mb() - before


def _peak_mb() -> float:
    """The most memory this process ever had, by Linux; what ``getrusage`` tells includes the parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def kind_of_device(model: str) -> str:
    """Where a model computes here: ``cpu`` or ``gpu``."""
    return "cpu" if ClipEncoder(model, "").device == "cpu" else "gpu"


def multiplied(images: Path, copies: int, folder: Path) -> Path:
    """A tar in which each image is there so often, told apart by bytes behind its end, which nobody decodes."""
    path = folder / "multiplied.tar"
    with opened(images, folder) as (archive, catalogue), tarfile.open(path, "w") as tar:
        copied = [
            catalogue.with_columns(
                pl.col("image_id") + f".{number}", pl.col("path").str.replace(r"(\.\w+)$", f"-{number}$1")
            )
            for number in range(copies)
        ]
        _add(tar, CSV_MEMBER, gzip.compress(pl.concat(copied).select(CSV_COLUMNS).write_csv().encode()))
        for number, rows in enumerate(copied):
            for row in rows.iter_rows(named=True):
                content = archive.read_at(row["offset"], row["size"]) + number.to_bytes(4)
                _add(tar, member_name(row["path"]), content)
    return path


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_many(path: Path, members: int) -> Path:
    """A tar of so many small members."""
    with tarfile.open(path, "w") as tar:
        for number in range(members):
            _add(tar, f"images/small/{number % 256:02x}/{number:08x}.jpg", os.urandom(1024))
    return path


@contextmanager
def opened(images: Path, folder: Path) -> Iterator[tuple[Archive, pl.DataFrame]]:
    """An archive and its images in the order of the tar, the same bytes once."""
    with Archive.open(images, folder) as archive:
        catalogue = read_catalogue(archive, min_side=Settings.read().min_side).kept
        yield archive, catalogue.unique("digest", keep="first", maintain_order=True).sort("offset")


def print_ways(ways: Sequence[Way], seed: Way) -> None:
    """The table: rates, and milliseconds of a thread for an image at each stage."""
    rows = []
    for way in ways:
        stages = milliseconds(way)
        rows.append(
            (
                way.name,
                f"{way.rate:.1f}",
                f"{min(way.rates):.1f}–{max(way.rates):.1f}",
                f"{way.rate / seed.rate:.2f}",
                *(f"{stages[stage]:.2f}" if stages else "" for stage in STAGES),
                way.tallies[-1].bottleneck if way.tallies else "",
            )
        )
    columns = ("way", "images/s", "rounds", "× seed", *(f"{stage} ms" for stage in STAGES), "bottleneck")
    print_table("Images to vectors; milliseconds of one thread for an image", columns, rows)


def milliseconds(way: Way) -> dict[str, float]:
    """What an image costs a thread at each stage; empty where the way is not ours."""
    if not way.tallies:
        return {}
    done = sum(tally.done for tally in way.tallies)
    return {stage: 1000 * sum(tally.seconds[stage] for tally in way.tallies) / done for stage in STAGES}


def plot_stages(path: Path, ways: Sequence[Way], title: str) -> None:
    """A bar a way: where a thread's time goes for an image."""
    from matplotlib.figure import Figure

    colours = {READ: "#56B4E9", DECODE: "#E69F00", PREPARE: "#009E73", ENCODE: "#0072B2", WRITE: "#CC79A7"}
    ours = [way for way in ways if way.tallies]
    figure = Figure(figsize=(10, 1.4 + 0.5 * len(ours)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(ours))
    for stage in STAGES:
        values = np.array([milliseconds(way)[stage] for way in ours])
        axes.barh([way.name for way in ours], values, left=left, color=colours[stage], label=stage, height=0.6)
        left += values
    for number, way in enumerate(ours):
        axes.text(left[number], number, f"  {way.rate:.0f} images/s", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("milliseconds of one thread for an image")
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(STAGES), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)


@dataclass
class Ways:
    """All ways that are compared, ours by precision."""

    on_gpu: bool
    seed: Way
    theirs: Way
    decoding: Way
    seed_beside: Way
    ours: dict[str, Way]
    ceilings: dict[str, Way]
    chains: dict[str, Way]
    beside: dict[str, Way]

    @classmethod
    def of(cls, embedding: Embedding, precisions: Sequence[str], store: Store) -> "Ways":
        """Every way of the precisions that can be had here."""
        seed, encoders = embedding.seeds_loop(), {}
        for precision in precisions:
            try:
                encoders[precision] = embedding.encoder(precision)
            except ModelError as error:
                CONSOLE.print(f"{precision} is left out: {error}")
        return cls(
            embedding.kind == "gpu",
            seed,
            embedding.sentence_transformers(),
            embedding.decoding(next(iter(encoders.values()))),
            Way(f"{seed.name}, one busy neighbour", seed.embed, seed.most),
            {name: embedding.ours(encoder) for name, encoder in encoders.items()},
            {name: embedding.forward(encoder) for name, encoder in encoders.items()},
            {
                name: embedding.chain(encoder, store.open_space(f"in_{name}", encoder))
                for name, encoder in encoders.items()
            },
            {name: embedding.ours(encoder, f"ours, {name}, one busy neighbour") for name, encoder in encoders.items()},
        )

    def undisturbed(self) -> list[Way]:
        """Those that have the machine for themselves."""
        mine = [*self.ours.values(), *self.ceilings.values(), *self.chains.values()]
        return [self.seed, self.theirs, *mine, self.decoding]

    def disturbed(self) -> list[Way]:
        """Those with a busy neighbour."""
        return [] if self.on_gpu else [self.seed_beside, *self.beside.values()]

    def every(self) -> list[Way]:
        """All."""
        return self.undisturbed() + self.disturbed()

    def go(self, part: pl.DataFrame) -> None:
        """A round of each."""
        for way in self.undisturbed():
            way.go(part)
        with busy_neighbour():
            for way in self.disturbed():
                way.go(part)

    def forget(self) -> None:
        """As if there had been no round."""
        for way in self.every():
            way.rates.clear()
            way.tallies.clear()

    def claims(self) -> list[Bar]:
        """What is claimed, with the numbers."""
        if self.on_gpu:
            return [
                Bar(f"{way.name}: images/s from the tar to vectors", way.rate, ON_A_GPU)
                for name, way in self.ours.items()
                if name == FLOAT16
            ]
        bars = [
            Bar(f"{self.ours[name].name}: times the seed's loop", self.ours[name].rate / self.seed.rate, bound)
            for name, bound in OF_SEED.items()
            if name in self.ours
        ]
        for name, way in self.ours.items():
            ceiling, chain, beside = self.ceilings[name].rate, self.chains[name], self.beside[name]
            bars += [
                Bar(f"{way.name}: of its forward alone", way.rate / ceiling, OF_CEILING),
                Bar(f"{chain.name}: of its forward alone", chain.rate / ceiling, CHAIN_OF_CEILING),
                Bar(f"{beside.name}: of undisturbed", beside.rate / way.rate, BESIDE_A_NEIGHBOUR),
            ]
        return bars


def print_fidelity(measured: Sequence[Fidelity]) -> None:
    """How true each precision is to the reference."""
    columns = ("precision", "images", "mean cosine", "least cosine", "10 nearest the same")
    rows = [
        (one.precision, one.images, f"{one.mean_cosine:.6f}", f"{one.min_cosine:.6f}", f"{one.overlap:.3f}")
        for one in measured
    ]
    print_table("Vectors beside those of the reference", columns, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a tar as ABO's abo-images-small.tar")
    parser.add_argument("--model", help="hub name or folder (default: ViT-B/32 with random weights)")
    parser.add_argument("--outliers", action="store_true", help="random weights with large channels, hard for int8")
    parser.add_argument("--precisions", help="(default: float32,bfloat16,int8; on a GPU float32,float16)")
    parser.add_argument("--copies", type=int, default=1, help="of each image, for what is done with them in a second")
    parser.add_argument("--part", type=int, default=256, help="images of a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--memory", type=int, default=0, help="also embed so many images, and watch the memory")
    parser.add_argument("--reading", type=int, default=0, help="also index a tar of so many members")
    parser.add_argument("--out", type=Path, help="folder for the numbers as JSON and the picture")
    given = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="abo-benchmark-") as name, ExitStack() as stack:
        images = given.images if given.copies == 1 else multiplied(given.images, given.copies, Path(name))
        archive, catalogue = stack.enter_context(opened(images, Path(name)))
        if len(catalogue) < given.part:
            parser.error(f"{images} has {len(catalogue):,} images that are kept, fewer than --part")
        store = stack.enter_context(fresh_store())
        model = given.model or str(make_clip(Path(name) / "model", outliers=given.outliers))
        store.write_images(catalogue)
        embedding = Embedding(archive, catalogue, model, Path(name) / "encoders")
        precisions = given.precisions.split(",") if given.precisions else PRECISIONS[embedding.kind]
        ways = Ways.of(embedding, precisions, store)
        coming = parts(catalogue, given.part)
        # The first one finds nothing at hand.
        ways.go(next(coming))
        ways.forget()
        for number in range(given.rounds):
            ways.go(next(coming))
            CONSOLE.print(f"round {number + 1} of {given.rounds} is done")
        print_ways(ways.every(), ways.seed)
        truth = embedding.fidelity(list(ways.ours))
        print_fidelity(truth)
        bars = ways.claims()
        if given.memory:
            fastest = max(ways.ours, key=lambda precision: ways.ours[precision].rate)
            found = alone("memory_of", images, model, embedding.folder, fastest, given.memory)
            figures["memory_gb"] = found
            bars.append(Bar("memory at the end, GB", found[-1][1], MOST_MEMORY_GB, at_most=True))
            growth = found[-1][1] / found[0][1]
            bars.append(Bar("memory at the end, times that at the first look", growth, FLAT, at_most=True))
        first = alone("first_vector", images, model)
        bars.append(Bar("first vector, s after the process's start", first, FIRST_VECTOR_SECONDS, at_most=True))
        if given.reading:
            many = write_many(Path(name) / "many.tar", given.reading)
            seconds, megabytes = alone("index_of", many, Path(name))
            bars.append(Bar(f"index of {given.reading:,} members, s", seconds, INDEX_SECONDS, at_most=True))
            bars.append(Bar(f"index of {given.reading:,} members, MB", megabytes, INDEX_MEMORY_MB, at_most=True))
        print_bars(bars)
    if given.out:
        figures["ways"] = [
            {"name": way.name, "rates": way.rates, "milliseconds": milliseconds(way)} for way in ways.every()
        ]
        figures["fidelity"] = [asdict(one) for one in truth]
        save(given.out / "embedding.json", bars, figures)
        plot_stages(given.out / "embedding.png", ways.every(), "Where a thread's time goes")
    return 0


if __name__ == "__main__":
    # What was started is stopped also when somebody ends this program other than by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
