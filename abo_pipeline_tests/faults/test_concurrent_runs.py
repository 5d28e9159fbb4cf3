"""Two at work on the same images at once: each image ends up once, and nobody fails."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from sqlalchemy import make_url, text

from abo_pipeline.archive import Archive
from abo_pipeline.catalog import read_catalogue
from abo_pipeline.embedding import Limits, Tally, embed_partition
from abo_pipeline.store import Store
from abo_pipeline.store.database import open_engine
from abo_pipeline_tests.archives import jpeg, write_images
from abo_pipeline_tests.fakes import ColourEncoder
from abo_pipeline_tests.faults.conftest import SMALL_BATCHES, Abo, wait_for
from abo_pipeline_tests.holding import waiting_sessions


@pytest.mark.slow
def test_two_runs_with_state_folders_of_their_own(abo: Abo, words, archive, ledger, tmp_path):
    """The lock in the state folder does not part them; only the database does."""
    with ledger.held(archive) as engine:
        runs = [abo.start(*words, *SMALL_BATCHES, ABO_STATE_DIR=tmp_path / f"state-{name}") for name in "ab"]
        wait_for("both at work", lambda: waiting_sessions(engine) == 2 or any(run.poll() is not None for run in runs))
        assert [run.poll() for run in runs] == [None, None]
        assert ledger.vectors()

    ended = [abo.ended(run) for run in runs]

    for run in ended:
        assert run.code == 0, run
        assert "kept 143 = embedded 141 + failed 2" in run.out
    ledger.check(archive)
    before = ledger.vectors()
    again = abo(*words)
    assert again.embeddings.startswith("nothing to embed, 141 were there already, failed 0, 2 failed before")
    assert ledger.vectors() == before


@dataclass
class InStep(ColourEncoder):
    """Goes from batch to batch together with another one."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def encode_images(self, images):
        self.barrier.wait(timeout=30)
        return super().encode_images(images)


@pytest.fixture
def stores(database_url):
    """Two, each with connections of its own, as two processes have."""
    stores = [Store(open_engine(make_url(database_url))) for _ in range(2)]
    yield stores
    for store in stores:
        store.engine.dispose()


def test_one_partition_embedded_twice_at_once_with_different_outcomes(stores, tmp_path):
    """Of every image that only one of two models could embed there is a vector or a failure, not both and not none."""
    sides = {f"{n:02}": 24 + 8 * (n % 3) for n in range(45)}
    files = {f"aa/{name}.jpg": jpeg((5 * int(name), 90, 200), (side, side)) for name, side in sides.items()}
    path = write_images(tmp_path / "images.tar", files)
    barrier = threading.Barrier(2)
    encoders = [InStep(aimless=frozenset({(side, side)}), barrier=barrier) for side in (24, 32)]

    def embed(store: Store, encoder: ColourEncoder) -> Tally:
        with Archive.open(path) as archive:
            kept = read_catalogue(archive, min_side=1000).kept
            store.write_images(kept)
            space = store.open_space("colours", encoder)
            return embed_partition("00of1", kept, archive, encoder, space, limits=Limits(10**6, 10**6), batch_size=5)

    with ThreadPoolExecutor(2) as pool:
        tallies = list(pool.map(embed, stores, encoders))

    assert [(tally.kept, tally.embedded, tally.failed) for tally in tallies] == [(45, 30, 15)] * 2
    assert [encoder.batches for encoder in encoders] == [[5] * 9] * 2
    with stores[0].engine.connect() as connection:
        vectors = set(connection.scalars(text("SELECT image_id FROM embeddings_colours")))
        failures = set(connection.scalars(text("SELECT image_id FROM failures")))
    assert not vectors & failures
    assert vectors | failures == set(sides)
    assert {name for name, side in sides.items() if side == 40} <= vectors
    (account,) = stores[0].accounts("colours", [0])
    assert (account.kept, account.embedded + account.failed, account.pending, account.departed) == (45, 45, 0, 0)
