"""What the daemon does at each of its turns, in this process: a backfill over the whole graph, and schedules' ticks.

The turns are private functions of Dagster, and so may be others in another version of it; with the real daemon the same
is in e2e/test_ui.py.
"""

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.remote_representation.external import RemoteSchedule
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus
from dagster._core.test_utils import freeze_time
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._daemon.backfill import execute_backfill_iteration
from dagster._scheduler.scheduler import ScheduleIterationTimes, launch_scheduled_runs

from abo_pipeline.sampling import partition_keys, partition_starts
from abo_pipeline.settings import Settings
from abo_pipeline.store import Store
from abo_pipeline_tests.defs.colour_location import definitions
from abo_pipeline_tests.defs.conftest import SQUARES

pytestmark = [
    pytest.mark.slow,
    # Dagster's turns use what Dagster itself is about to remove, and leave a loop of their own unawaited.
    pytest.mark.filterwarnings("ignore:.* is deprecated and will be removed in 2.0:DeprecationWarning:dagster"),
    pytest.mark.filterwarnings("ignore:coroutine 'BaseEventLoop.shutdown_asyncgens':RuntimeWarning"),
]

PARTITIONS = 4
LOGGER = logging.getLogger(__name__)


@pytest.fixture
def settings(colours: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The squares in four partitions, two of them a tick; also in the variables, where the code location reads them."""
    variables = colours.model_dump(mode="json") | {
        "database_url": colours.database_url.get_secret_value(),
        "sizes": "10,30",
        "queries": "red;like:",
        "partitions": PARTITIONS,
        "fill_per_tick": 2,
    }
    for name, value in variables.items():
        if value is not None:
            monkeypatch.setenv(f"ABO_{name.upper()}", ",".join(value) if isinstance(value, list) else str(value))
    return Settings.read()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """One on disk whose runs are executed at once, in this process."""
    with dg.instance_for_test(synchronous_run_launcher=True, synchronous_run_coordinator=True) as instance:
        yield instance


@pytest.fixture
def workspace(settings: Settings, instance: dg.DagsterInstance) -> Iterator[WorkspaceProcessContext]:
    """The code location, loaded as the daemon loads it, but for the process of its own."""
    del settings
    origin = LoadableTargetOrigin(
        executable_path=sys.executable, module_name="abo_pipeline_tests.defs.colour_location", attribute="definitions"
    )
    target = InProcessWorkspaceLoadTarget(InProcessCodeLocationOrigin(origin))
    with WorkspaceProcessContext(instance, target) as workspace:
        yield workspace


def test_a_backfill_over_the_whole_graph_makes_each_asset_once_and_in_order(workspace, instance, store):
    graph = workspace.create_request_context().asset_graph
    instance.add_backfill(
        PartitionBackfill.from_asset_partitions(
            backfill_id="whole",
            asset_graph=graph,
            partition_names=None,
            asset_selection=list(graph.materializable_asset_keys),
            backfill_timestamp=datetime.now(UTC).timestamp(),
            tags={},
            dynamic_partitions_store=instance,
            all_partitions=True,
            title=None,
            description=None,
            run_config=None,
        )
    )

    turns = 0
    while instance.get_backfill("whole").status == BulkActionStatus.REQUESTED:
        turns += 1
        assert turns < 20, "the backfill does not end"
        assert [error for error in execute_backfill_iteration(workspace, LOGGER) if error] == []

    assert instance.get_backfill("whole").status == BulkActionStatus.COMPLETED_SUCCESS
    runs = sorted(instance.get_runs(), key=lambda run: instance.get_run_record_by_id(run.run_id).start_time)
    assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    made = [
        (sorted(key.to_user_string() for key in run.asset_selection), run.tags.get("dagster/partition")) for run in runs
    ]
    assert made == [
        (["image_paths", "listings", "raw_archive"], None),
        *[(["image_embeddings"], key) for key in partition_keys(PARTITIONS)],
        (["embedding_index", "golden_queries", "search_report", "storage_ladder"], None),
    ]
    passed = Counter(
        evaluation.dagster_event.asset_check_evaluation_data.passed
        for run in runs
        for evaluation in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    )
    assert passed.keys() == {True}
    assert accounted(store) == [(0, 0)] * PARTITIONS


def test_ticks_fill_the_partitions_in_order_until_nothing_is_left(workspace, instance, store):
    schedule = remote_schedule(workspace, "fill_partitions")
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC)
    with freeze_time(noon - timedelta(minutes=1)):
        instance.start_schedule(schedule)
    clock = Clock(workspace, instance, schedule)

    # Before there is a catalogue it asks for nothing, and says what is missing.
    (tick,) = clock.advance_to(noon)
    assert tick.status == TickStatus.SKIPPED
    assert tick.skip_reason.startswith("there is no catalogue yet")

    materialize_catalogue(instance)
    keys = partition_keys(PARTITIONS)
    for number, wanted in enumerate([keys[:2], keys[2:]], start=1):
        (tick,) = clock.advance_to(noon + timedelta(minutes=10 * number))
        assert tick.status == TickStatus.SUCCESS
        asked = [instance.get_run_by_id(run_id) for run_id in tick.run_ids]
        assert [run.tags["dagster/partition"] for run in asked] == wanted
        assert {run.status for run in asked} == {dg.DagsterRunStatus.SUCCESS}

    # A second look within the same tick asks for nothing twice.
    assert clock.advance_to(noon + timedelta(minutes=20, seconds=30)) == []
    (tick,) = clock.advance_to(noon + timedelta(minutes=30))
    assert (tick.status, tick.skip_reason, tick.run_ids) == (TickStatus.SKIPPED, "nothing is to do", [])
    assert len([run for run in instance.get_runs() if "dagster/schedule_name" in run.tags]) == PARTITIONS
    assert accounted(store) == [(0, 0)] * PARTITIONS


class Clock:
    """The scheduler's loop, with a time that goes on when it is told to."""

    def __init__(
        self, workspace: WorkspaceProcessContext, instance: dg.DagsterInstance, schedule: RemoteSchedule
    ) -> None:
        self._workspace = workspace
        self._instance = instance
        self._schedule = schedule
        self._iterations: dict[str, ScheduleIterationTimes] = {}
        self._seen: set[int] = set()

    def advance_to(self, now: datetime) -> list[InstigatorTick]:
        """Take the scheduler's turn at a time; the ticks that it brought."""
        with freeze_time(now):
            assert [
                error for error in launch_scheduled_runs(self._workspace, LOGGER, now, self._iterations) if error
            ] == []
        ticks = self._instance.get_ticks(self._schedule.get_remote_origin_id(), self._schedule.selector_id)
        new = [tick for tick in ticks if tick.tick_id not in self._seen]
        self._seen |= {tick.tick_id for tick in new}
        return new


def remote_schedule(workspace: WorkspaceProcessContext, name: str) -> RemoteSchedule:
    """The schedule as the daemon sees it."""
    (location,) = workspace.create_request_context().code_locations
    (repository,) = location.get_repositories().values()
    return repository.get_schedule(name)


def materialize_catalogue(instance: dg.DagsterInstance) -> None:
    """What comes before the embeddings."""
    result = (
        definitions()
        .resolve_implicit_global_asset_job_def()
        .execute_in_process(
            asset_selection=[dg.AssetKey(asset) for asset in ("raw_archive", "listings", "image_paths")],
            instance=instance,
        )
    )
    assert result.success


def accounted(store: Store) -> list[tuple[int, int]]:
    """What is pending and what failed in each partition; that every square is embedded is seen to as well."""
    accounts = store.accounts("colours", partition_starts(PARTITIONS))
    assert sum(account.embedded for account in accounts) == len(SQUARES)
    return [(account.pending, account.failed) for account in accounts]
