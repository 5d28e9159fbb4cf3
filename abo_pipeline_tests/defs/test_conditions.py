"""The declarative way: what the conditions of the assets ask for, evaluated as the sensor does."""

from datetime import UTC, datetime

import dagster as dg
import pytest

from abo_pipeline.defs.history import EMBEDDINGS
from abo_pipeline_tests.defs.conftest import materialize, materialize_all

INDEX = dg.AssetKey("embedding_index")
REPORT = dg.AssetKey("search_report")


class Clock:
    """Evaluates the conditions at one time after another."""

    def __init__(self, definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
        self._definitions, self._instance, self._cursor = definitions, instance, None

    def at(self, hour: int, minute: int) -> dict[str, set[str] | int]:
        result = dg.evaluate_automation_conditions(
            self._definitions,
            instance=self._instance,
            cursor=self._cursor,
            evaluation_time=datetime(2026, 1, 1, hour, minute, tzinfo=UTC),
        )
        self._cursor = result.cursor
        return {
            "partitions": set(result.get_requested_partitions(EMBEDDINGS)),
            "index": result.get_num_requested(INDEX),
            "report": result.get_num_requested(REPORT),
        }


@pytest.fixture
def clock(definitions, instance) -> Clock:
    clock = Clock(definitions, instance)
    clock.at(3, 59)
    return clock


NOTHING = {"partitions": set(), "index": 0, "report": 0}


def test_without_a_catalogue_nothing_is_asked_for(clock):
    assert clock.at(4, 1) == NOTHING


def test_missing_partitions_are_asked_for_once_at_each_due_time(definitions, instance, clock):
    materialize(definitions, instance, "raw_archive", "image_paths")

    assert clock.at(4, 1)["partitions"] == {"00of2", "01of2"}
    assert clock.at(4, 2)["partitions"] == set()
    materialize(definitions, instance, "image_embeddings", partition_key="00of2")
    assert clock.at(4, 11)["partitions"] == {"01of2"}


def test_a_partition_whose_last_run_failed_is_asked_for_again(definitions, instance, clock, monkeypatch):
    materialize_all(definitions, instance)
    clock.at(4, 1)
    with monkeypatch.context() as broken:
        # The partition has rows already: its run fails where it says what it did.
        broken.setattr("abo_pipeline.defs.assets.embeddings.in_words", lambda *_: 1 / 0)
        materialize(definitions, instance, "image_embeddings", partition_key="01of2", raise_on_error=False)

    assert clock.at(4, 11)["partitions"] == {"01of2"}


def test_a_catalogue_that_was_read_again_has_every_partition_looked_at(definitions, instance, clock):
    materialize_all(definitions, instance)
    assert clock.at(4, 1)["partitions"] == set()
    materialize(definitions, instance, "image_paths")

    assert clock.at(4, 2)["partitions"] == set()
    assert clock.at(4, 11)["partitions"] == {"00of2", "01of2"}
    for key in ("00of2", "01of2"):
        materialize(definitions, instance, "image_embeddings", partition_key=key)
    assert clock.at(4, 21)["partitions"] == set()


def test_a_partition_under_way_is_not_asked_for(definitions, instance, clock):
    materialize(definitions, instance, "raw_archive", "image_paths")
    job = definitions.resolve_implicit_global_asset_job_def()
    instance.create_run_for_job(
        job,
        status=dg.DagsterRunStatus.STARTED,
        tags={"dagster/partition": "00of2"},
        asset_selection=frozenset([EMBEDDINGS]),
        execution_plan=None,
    )

    assert clock.at(4, 1)["partitions"] == {"01of2"}


def test_the_index_follows_when_the_last_partition_is_there_and_the_report_when_it_is_due(definitions, instance, clock):
    materialize(definitions, instance, "raw_archive", "listings", "image_paths")
    materialize(definitions, instance, "image_embeddings", partition_key="00of2")
    assert clock.at(4, 1)["index"] == 0

    materialize(definitions, instance, "image_embeddings", partition_key="01of2")
    assert clock.at(4, 2) == {"partitions": set(), "index": 1, "report": 0}

    materialize(definitions, instance, "embedding_index", "golden_queries")
    assert clock.at(4, 3) == NOTHING
    assert clock.at(5, 1) == {"partitions": set(), "index": 0, "report": 1}
