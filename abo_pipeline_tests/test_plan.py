"""The plan's arithmetic, and that what it says of the disk is near to what Postgres takes."""

import numpy as np
import pytest
from sqlalchemy import text

from abo_pipeline.plan import Speed, make_plan
from abo_pipeline.sampling import LAST_KEY, sample_key
from abo_pipeline.store.indexes import build_index
from abo_pipeline.store.spaces import Account, Embedded
from benchmarks.stores import NamedOnly

DONE = Account(kept=100, embedded=97, failed=3, pending=0, departed=0)
OPEN = Account(kept=100, embedded=10, failed=0, pending=90, departed=0)
LEFT = Account(kept=10, embedded=10, failed=0, pending=0, departed=4)


def test_what_is_pending_is_counted_and_timed_by_past_runs():
    plan = make_plan([DONE, OPEN, OPEN, LEFT], [50, 1000], 512, Speed(images=600, seconds=60.0, runs=3))

    assert (plan.kept, plan.embedded, plan.failed, plan.pending) == (310, 127, 3, 180)
    # One in which only images left the catalogue is to be run too.
    assert (plan.partitions, plan.all_partitions) == (3, 4)
    assert plan.minutes == pytest.approx(0.3)
    assert str(plan) == "180 images to embed in 3 of 4 partitions, less than a minute, 1 MB in the database"


def test_without_past_runs_the_time_is_not_guessed():
    plan = make_plan([OPEN], [50], 512, None)

    assert plan.minutes is None
    assert "of a duration that the first partition will tell" in str(plan)


def test_nothing_to_do_takes_no_time():
    plan = make_plan([DONE], [50], 512, None)

    assert (plan.minutes, plan.disk_bytes) == (0.0, 0)
    assert str(plan) == "nothing to embed: kept 100 = embedded 97 + failed 3"


@pytest.mark.parametrize(
    ("pending", "words"), [(3_000, "about 5 minutes"), (342_878, "about 9.5 hours")], ids=["minutes", "hours"]
)
def test_long_times_are_said_in_units_that_fit(pending, words):
    account = Account(kept=pending, embedded=0, failed=0, pending=pending, departed=0)

    assert words in str(make_plan([account], [1000], 512, Speed(images=100, seconds=10.0, runs=1)))


def test_the_disk_that_is_asked_for_is_near_to_what_is_used(store):
    class Random(NamedOnly):
        model, fingerprint, dimension = "random", "f00", 256

    rows = 3_000
    space = store.open_space("random", Random())
    vectors = np.random.default_rng(1).standard_normal((rows, 256)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"{number:011}" for number in range(rows)]
    space.write(
        [
            Embedded(image_id, sample_key(image_id), "d" * 32, vector)
            for image_id, vector in zip(ids, vectors, strict=True)
        ],
        [],
    )
    index = build_index(space, rows, LAST_KEY, memory_mb=64)
    with store.engine.connect() as connection:
        table = connection.scalar(text("SELECT pg_total_relation_size('embeddings_random')"))
    pending = Account(kept=rows, embedded=0, failed=0, pending=rows, departed=0)

    plan = make_plan([pending], [rows], 256, None)

    # The table's total counts the vector index too.
    assert index.bytes < table
    assert plan.disk_bytes == pytest.approx(table, rel=0.2)
