"""What is asked for at set times, evaluated on a real instance and against real rows."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.definitions.schedule_definition import ScheduleExecutionData
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from abo_pipeline.definitions import build_definitions
from abo_pipeline.defs.history import EMBEDDINGS
from abo_pipeline.defs.resources import StoreResource
from abo_pipeline.defs.schedules import AUTOMATION_SENSOR
from abo_pipeline.settings import Settings
from abo_pipeline.store import open_store
from abo_pipeline_tests.archives import jpeg, write_images
from abo_pipeline_tests.defs.conftest import materialize, materialize_all
from abo_pipeline_tests.fakes import ColourEncoder

pytestmark = pytest.mark.slow

KEYS = [f"{number:02}of8" for number in range(8)]

Tick = Callable[[str], list[str] | str]


@pytest.fixture
def eight(colours: Settings) -> Settings:
    return Settings.read(**colours.model_dump() | {"partitions": 8, "fill_per_tick": 3})


@pytest.fixture
def definitions(eight: Settings) -> dg.Definitions:
    return build_definitions(eight, encoder=ColourEncoder())


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """One on disk: a tick opens the instance for itself."""
    with dg.instance_for_test() as instance:
        yield instance


def evaluate(
    definitions: dg.Definitions, instance: dg.DagsterInstance, settings: Settings, name: str
) -> ScheduleExecutionData:
    """Evaluate a schedule as its tick at noon does."""
    repository = definitions.get_repository_def()
    with dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime(2026, 1, 1, 12, tzinfo=UTC),
        repository_def=repository,
        resources={"settings": settings, "store": StoreResource(settings)},
    ) as context:
        return repository.get_schedule_def(name).evaluate_tick(context)


@pytest.fixture
def tick(definitions, instance, eight) -> Tick:
    """Evaluate a schedule: the partitions that it asks for (a whole run counts as one without), or why none."""

    def tick(name: str) -> list[str] | str:
        found = evaluate(definitions, instance, eight, name)
        if found.skip_message:
            return found.skip_message
        return [request.partition_key or "everything" for request in found.run_requests]

    return tick


def embed(definitions: dg.Definitions, instance: dg.DagsterInstance, *keys: str) -> None:
    for key in keys:
        materialize(definitions, instance, "image_embeddings", partition_key=key)


def remove_one(settings: Settings, partition: str) -> None:
    """Take the vector of one image of a partition away behind Dagster's back."""
    number, partitions = (int(part) for part in partition.split("of"))
    store = open_store(settings)
    space = store.find_space("colours")
    width = 2**63 // partitions
    embedded, _ = space.known(number * width, (number + 1) * width - 1)
    space.remove([embedded["image_id"][0]])
    store.engine.dispose()


def test_before_there_is_a_catalogue_nothing_is_asked_for(tick):
    assert tick("fill_partitions") == (
        "there is no catalogue yet: materialize raw_archive and image_paths, or run refresh_job"
    )


def test_missing_partitions_are_asked_for_in_order_a_few_at_a_time_until_none_is_left(definitions, instance, tick):
    materialize(definitions, instance, "raw_archive", "image_paths")
    asked = []
    while isinstance(wanted := tick("fill_partitions"), list):
        asked.append(wanted)
        embed(definitions, instance, *wanted)

    assert asked == [KEYS[:3], KEYS[3:6], KEYS[6:]]
    assert wanted == "nothing is to do"


def test_a_request_is_for_the_job_that_embeds_with_a_key_of_its_own(definitions, instance, eight):
    materialize(definitions, instance, "raw_archive", "image_paths")

    first, *_ = evaluate(definitions, instance, eight, "fill_partitions").run_requests

    assert first.run_key == "2026-01-01T12:00:00of8"
    assert first.tags["dagster/partition"] == "00of8"
    assert definitions.get_repository_def().get_schedule_def("fill_partitions").job_name == "embed_job"


def test_a_gap_is_filled_before_what_comes_after_it(definitions, instance, tick, eight):
    materialize(definitions, instance, "raw_archive", "image_paths")
    embed(definitions, instance, *KEYS[:5])
    remove_one(eight, KEYS[1])

    assert tick("fill_partitions") == [KEYS[1], KEYS[5], KEYS[6]]


def test_rows_count_and_not_what_dagster_remembers(definitions, instance, tick, eight):
    materialize_all(definitions, instance, partitions=8)
    assert tick("fill_partitions") == "nothing is to do"

    remove_one(eight, KEYS[4])

    assert instance.get_materialized_partitions(EMBEDDINGS) == set(KEYS)
    assert tick("fill_partitions") == [KEYS[4]]


def test_a_partition_whose_run_failed_is_asked_for_again(definitions, instance, tick, monkeypatch):
    materialize(definitions, instance, "raw_archive", "image_paths")
    embed(definitions, instance, *KEYS[1:])
    with monkeypatch.context() as broken:
        broken.setattr(ColourEncoder, "encode_images", lambda *_: 1 / 0)
        materialize(definitions, instance, "image_embeddings", partition_key=KEYS[0], raise_on_error=False)

    assert tick("fill_partitions") == [KEYS[0]]


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
def test_a_partition_that_is_waiting_or_running_is_not_asked_for_again(definitions, instance, tick, status):
    materialize(definitions, instance, "raw_archive", "image_paths")
    embed(definitions, instance, *KEYS[3:])
    job = definitions.resolve_implicit_global_asset_job_def()
    for key in KEYS[:2]:
        instance.create_run_for_job(
            job, status=status, tags={"dagster/partition": key}, asset_selection=frozenset([EMBEDDINGS])
        )

    assert tick("fill_partitions") == [KEYS[2]]
    embed(definitions, instance, KEYS[2])
    assert tick("fill_partitions") == "2 partitions are under way, and nothing else is to do"


def test_while_a_backfill_of_the_embeddings_is_under_way_nothing_is_asked_for(definitions, instance, tick):
    materialize(definitions, instance, "raw_archive", "image_paths")
    backfill = PartitionBackfill.from_asset_partitions(
        backfill_id="everything",
        asset_graph=definitions.resolve_asset_graph(),
        partition_names=None,
        asset_selection=[dg.AssetKey("image_paths"), EMBEDDINGS],
        backfill_timestamp=1767268800.0,
        tags={},
        dynamic_partitions_store=instance,
        all_partitions=True,
        title=None,
        description=None,
        run_config=None,
    )
    instance.add_backfill(backfill)

    # None of its runs is there yet.
    assert tick("fill_partitions") == "a backfill of image_embeddings is under way"
    instance.update_backfill(backfill.with_status(BulkActionStatus.COMPLETED_SUCCESS))
    assert tick("fill_partitions") == KEYS[:3]


def test_partitions_that_fail_every_time_come_last(definitions, instance, tick, monkeypatch):
    materialize(definitions, instance, "raw_archive", "image_paths")
    with monkeypatch.context() as broken:
        broken.setattr(ColourEncoder, "encode_images", lambda *_: 1 / 0)
        for key in (*KEYS[:3] * 3, KEYS[3]):
            materialize(definitions, instance, "image_embeddings", partition_key=key, raise_on_error=False)

    assert tick("fill_partitions") == KEYS[3:6]
    embed(definitions, instance, *KEYS[3:])
    assert tick("fill_partitions") == KEYS[:3]
    embed(definitions, instance, *KEYS[:3])
    assert tick("fill_partitions") == "nothing is to do"


def test_after_a_run_with_other_settings_the_code_location_has_to_be_loaded_again(definitions, instance, tick, eight):
    materialize(definitions, instance, "raw_archive", "image_paths")
    eight.remember()
    assert tick("fill_partitions") == KEYS[:3]

    Settings.read(**eight.model_dump() | {"space": "other"}).remember()

    reason = "a run left other settings since this code location was loaded: press Reload at it"
    assert (tick("fill_partitions"), tick("renew_report")) == (reason, reason)


def test_a_partition_of_which_too_many_failed_is_left_to_a_person(colours, instance):
    bad = {f"aa/bad-{n}.jpg": b"bad" for n in range(12)}
    write_images(Path(colours.archive), bad | {"bb/good.jpg": jpeg()})
    settings = Settings.read(**colours.model_dump() | {"partitions": 1})
    one = build_definitions(settings, encoder=ColourEncoder())
    materialize(one, instance, "raw_archive", "image_paths")
    materialize(one, instance, "image_embeddings", partition_key="00of1", raise_on_error=False)

    found = evaluate(one, instance, settings, "fill_partitions")

    assert found.run_requests == []
    assert found.skip_message == (
        "nothing is to do; of 1 partitions more images failed than may: see `abo failures`, mend the cause, and launch "
        "retry_failures_job"
    )


def test_while_the_declarative_way_is_on_the_schedule_asks_for_nothing(definitions, instance, tick):
    materialize(definitions, instance, "raw_archive", "image_paths")
    location = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name="abo_pipeline.definitions"))
    origin = RemoteRepositoryOrigin(location, "__repository__").get_instigator_origin(AUTOMATION_SENSOR)
    running = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING)
    instance.add_instigator_state(running)

    assert tick("fill_partitions") == (
        "the sensor automate_partitions is on, and asks for the same; switch one of them off"
    )
    instance.update_instigator_state(running.with_status(InstigatorStatus.STOPPED))
    assert tick("fill_partitions") == KEYS[:3]


def test_the_report_is_renewed_when_something_was_embedded_since_the_last_one(definitions, instance, tick, eight):
    assert tick("renew_report") == "nothing is embedded yet"
    materialize(definitions, instance, "raw_archive", "listings", "image_paths")
    embed(definitions, instance, *KEYS)
    assert tick("renew_report") == ["everything"]

    materialize(definitions, instance, "embedding_index", "golden_queries", "search_report")
    assert tick("renew_report").startswith("nothing was embedded since the report of 20")

    remove_one(eight, KEYS[0])
    assert tick("renew_report") == ["everything"]


def test_a_report_for_another_space_is_not_this_ones_report_nor_does_it_hide_it(definitions, instance, tick, eight):
    other = build_definitions(Settings.read(**eight.model_dump() | {"space": "others"}), encoder=ColourEncoder())
    materialize_all(other, instance, partitions=8)
    embed(definitions, instance, *KEYS)
    assert tick("renew_report") == ["everything"]

    materialize(definitions, instance, "embedding_index", "golden_queries", "search_report")
    assert tick("renew_report").startswith("nothing was embedded since")

    materialize(other, instance, "search_report")
    assert tick("renew_report").startswith("nothing was embedded since")


def test_partitions_of_a_new_space_are_asked_for_although_dagster_knows_them_as_done(definitions, instance, eight):
    materialize_all(definitions, instance, partitions=8)
    beside = Settings.read(**eight.model_dump() | {"space": "others"})
    other = build_definitions(beside, encoder=ColourEncoder(model="other", fingerprint="0dd0dd0dd0dd0dd0"))

    asked = []
    while requests := evaluate(other, instance, beside, "fill_partitions").run_requests:
        keys = [request.partition_key for request in requests]
        embed(other, instance, *keys)
        asked += keys

    assert asked == KEYS
    assert evaluate(definitions, instance, eight, "fill_partitions").skip_message == "nothing is to do"


def test_a_report_that_is_being_made_is_not_asked_for_again(definitions, instance, tick):
    materialize(definitions, instance, "raw_archive", "listings", "image_paths")
    embed(definitions, instance, *KEYS)
    instance.create_run_for_job(definitions.resolve_job_def("report_job"), status=dg.DagsterRunStatus.STARTED)

    assert tick("renew_report") == "it is being renewed"


def test_the_checks_are_asked_for_without_conditions_and_pass_on_a_fresh_state(definitions, instance, tick):
    materialize_all(definitions, instance, partitions=8)

    assert tick("run_checks") == ["everything"]
    result = definitions.resolve_job_def("checks_job").execute_in_process(instance=instance)
    assert {check.check_name: check.passed for check in result.get_asset_check_evaluations()} == dict.fromkeys(
        (
            "index_is_used",
            "canary_query_answers",
            "recall_meets_target",
            "sizes_are_covered",
            "golden_queries_are_steady",
            "report_is_fresh",
        ),
        True,
    )
