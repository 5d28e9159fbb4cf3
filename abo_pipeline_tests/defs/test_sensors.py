"""What is watched: a changed archive, a failed run."""

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import text

from abo_pipeline.definitions import build_definitions
from abo_pipeline.defs.history import EMBEDDINGS
from abo_pipeline.defs.schedules import AUTOMATION_SENSOR
from abo_pipeline.defs.sensors import archive_changed, failure_words
from abo_pipeline.settings import Settings
from abo_pipeline.store import open_store
from abo_pipeline_tests.archives import jpeg, write_images
from abo_pipeline_tests.defs.conftest import SQUARES, materialize, materialize_all
from abo_pipeline_tests.fakes import ColourEncoder


def look(instance: dg.DagsterInstance, settings: Settings) -> dg.RunRequest | str:
    found = archive_changed(dg.build_sensor_context(instance=instance), settings=settings)
    return found if isinstance(found, dg.RunRequest) else found.skip_message


def test_an_archive_nobody_has_taken_yet_is_nothing_to_refresh(instance, colours):
    assert look(instance, colours) == (
        "it is not known which archive is in use: materialize raw_archive and image_paths once"
    )


def test_a_catalogue_of_another_archive_is_nothing_to_refresh(definitions, instance, colours, tmp_path):
    materialize(definitions, instance, "raw_archive", "image_paths")
    other = write_images(tmp_path / "other.tar", SQUARES)

    said = look(instance, Settings.read(**colours.model_dump() | {"archive": str(other)}))

    assert said.startswith(f"the catalogue was last read from {colours.archive}, and ABO_ARCHIVE is {other}: ")


def test_an_archive_that_changed_is_asked_for_once_and_then_taken(definitions, instance, colours):
    materialize(definitions, instance, "raw_archive", "image_paths")
    assert look(instance, colours).startswith("the archive is as it was: ")
    write_images(Path(colours.archive), SQUARES | {"cc/new.jpg": jpeg("lime")})

    first, again = look(instance, colours), look(instance, colours)

    # Requests of the same key are one request to Dagster.
    assert first.run_key == again.run_key
    result = definitions.resolve_job_def("refresh_job").execute_in_process(instance=instance)
    (kept,) = result.asset_materializations_for_node("image_paths")
    assert (kept.metadata["added"].value, kept.metadata["pending"].value) == (1, 41)
    assert look(instance, colours).startswith("the archive is as it was: ")


def test_a_version_that_comes_back_is_asked_for_again(definitions, instance, colours):
    def put(images: dict[str, bytes], mtime: int) -> None:
        write_images(Path(colours.archive), images)
        os.utime(colours.archive, ns=(mtime, mtime))

    old, new = SQUARES, SQUARES | {"cc/new.jpg": jpeg("lime")}
    keys = []
    put(old, 1)
    materialize(definitions, instance, "raw_archive", "image_paths")
    for images, mtime in ((new, 2), (old, 1), (new, 2)):
        put(images, mtime)
        keys.append(look(instance, colours).run_key)
        assert definitions.resolve_job_def("refresh_job").execute_in_process(instance=instance).success

    assert len(set(keys)) == 3


def test_a_refresh_that_went_half_way_is_not_taken_for_done(definitions, instance, colours):
    materialize(definitions, instance, "raw_archive", "image_paths")
    write_images(Path(colours.archive), SQUARES | {"cc/new.jpg": jpeg("lime")})

    materialize(definitions, instance, "raw_archive")

    assert isinstance(look(instance, colours), dg.RunRequest)


def test_an_archive_that_was_only_touched_is_looked_at_again_and_changes_nothing(definitions, instance, colours):
    materialize(definitions, instance, "raw_archive", "image_paths")
    os.utime(colours.archive, ns=(1, 1))

    assert isinstance(look(instance, colours), dg.RunRequest)
    result = definitions.resolve_job_def("refresh_job").execute_in_process(instance=instance)
    (kept,) = result.asset_materializations_for_node("image_paths")
    assert [kept.metadata[name].value for name in ("added", "changed", "removed")] == [0, 0, 0]


# --- A failed run ---


@pytest.fixture
def chat() -> Iterator[tuple[str, list[dict]]]:
    """A chat service: its address, which is a secret, and what was posted to it."""
    posted: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(404 if "gone" in self.path else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/s3cr3t", posted
    server.shutdown()
    server.server_close()


def failed_run(
    settings: Settings, instance: dg.DagsterInstance, *assets: str, partition_key: str | None = None
) -> dg.RunFailureSensorContext:
    """A run that fails, as the sensor is told of it."""
    definitions = build_definitions(settings, encoder=ColourEncoder())
    result = materialize(definitions, instance, *assets, partition_key=partition_key, raise_on_error=False)
    assert not result.success
    return dg.build_run_status_sensor_context(
        sensor_name="report_failures",
        dagster_instance=instance,
        dagster_run=instance.get_run_by_id(result.run_id),
        dagster_event=result.get_run_failure_event(),
        partition_key=partition_key,
    ).for_run_failure()


def report(settings: Settings, context: dg.RunFailureSensorContext) -> None:
    definitions = build_definitions(settings, encoder=ColourEncoder())
    (sensor,) = [sensor for sensor in definitions.sensors if sensor.name == "report_failures"]
    sensor(context)


def test_a_failed_partition_is_reported_with_its_reason_and_what_to_do(definitions, instance, colours, chat):
    address, posted = chat
    materialize(definitions, instance, "raw_archive", "image_paths")
    write_images(Path(colours.archive), {f"zz/other-{n}.jpg": jpeg("lime") for n in range(40)})
    settings = Settings.read(**colours.model_dump() | {"alert_url": address})
    context = failed_run(settings, instance, "image_embeddings", partition_key="01of2")

    report(settings, context)

    (message,) = posted
    words = message["text"]
    assert words.startswith(f"Run {context.dagster_run.run_id[:8]} of image_embeddings, partition 01of2 failed: ")
    assert "failed: image_embeddings: ArchiveError: " in words
    assert "squares.tar is not the archive that the catalogue was read from" in words
    assert "Materialize raw_archive and image_paths again, or use `abo run`" in words
    assert words.endswith("What was committed stays. When the cause is mended, launch the run again.")
    (observation,) = instance.fetch_observations(EMBEDDINGS, limit=10).records
    assert (observation.partition_key, observation.asset_observation.description) == ("01of2", words)


def test_a_run_of_something_else_is_reported_without_a_partition(instance, colours):
    Path(colours.archive).write_bytes(b"no tar at all" * 100)

    words = failure_words(failed_run(colours, instance, "raw_archive"))

    assert " of raw_archive failed: raw_archive: ArchiveError: " in words
    assert words.endswith("What was committed stays. When the cause is mended, launch the run again.")


def test_a_check_that_did_not_pass_is_reported_in_its_own_words(definitions, instance, colours):
    materialize_all(definitions, instance)
    store = open_store(colours)
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE embeddings_colours SET fingerprint = 'other'"))
    store.engine.dispose()

    words = failure_words(failed_run(colours, instance, "image_embeddings", partition_key="01of2"))

    assert "failed: image_embeddings did not pass its check vectors_are_of_one_model: " in words
    assert "delete them from embeddings_colours and materialize the partition again." in words


def test_a_run_that_dagster_runs_again_is_reported_so(instance, colours):
    Path(colours.archive).write_bytes(b"no tar at all" * 100)
    context = failed_run(colours, instance, "raw_archive")
    run = context.dagster_run.with_tags(context.dagster_run.tags | {"dagster/will_retry": "true"})

    words = failure_words(
        dg.build_run_status_sensor_context("report_failures", context.dagster_event, instance, run).for_run_failure()
    )

    assert words.endswith("What was committed stays. Dagster runs it once more by itself.")


def test_an_alert_that_is_not_taken_fails_the_sensor_without_telling_the_address(instance, colours, chat):
    address, _ = chat
    settings = Settings.read(**colours.model_dump() | {"alert_url": f"{address}/gone"})
    Path(colours.archive).write_bytes(b"no tar at all" * 100)
    context = failed_run(settings, instance, "raw_archive")

    with pytest.raises(dg.Failure) as failed:
        report(settings, context)

    assert failed.value.description.startswith("The alert was not taken by ABO_ALERT_URL (status 404): Run ")
    assert "s3cr3t" not in failed.value.description


def test_an_alert_that_nobody_listens_for_fails_the_sensor_without_telling_the_address(instance, colours):
    settings = Settings.read(**colours.model_dump() | {"alert_url": "http://127.0.0.1:9/s3cr3t"})
    Path(colours.archive).write_bytes(b"no tar at all" * 100)
    context = failed_run(settings, instance, "raw_archive")

    with pytest.raises(dg.Failure) as failed:
        report(settings, context)

    assert failed.value.description.startswith("The alert was not taken by ABO_ALERT_URL (ConnectionError): Run ")
    assert "s3cr3t" not in failed.value.description


def test_the_declarative_way_is_a_sensor_for_every_asset(definitions):
    (sensor,) = [sensor for sensor in definitions.sensors if sensor.name == AUTOMATION_SENSOR]

    selected = sensor.asset_selection.resolve(definitions.resolve_asset_graph())
    assert {"image_embeddings", "embedding_index", "golden_queries", "search_report"} <= {
        key.to_user_string() for key in selected
    }
