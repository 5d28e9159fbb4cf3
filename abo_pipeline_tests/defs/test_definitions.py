"""The code location: what it offers, that it loads quickly, and from anywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from abo_pipeline.definitions import build_definitions, defs
from abo_pipeline.errors import SettingsError
from abo_pipeline.settings import PROJECT_ROOT, Settings

HEAVY = ("torch", "transformers", "sentence_transformers", "matplotlib", "sklearn", "scipy")


def test_the_graph_is_what_the_readme_says(definitions):
    assets = {
        spec.key.to_user_string(): (
            spec.group_name,
            sorted(spec.kinds),
            sorted(dep.asset_key.to_user_string() for dep in spec.deps),
            spec.partitions_def is not None,
        )
        for spec in definitions.resolve_all_asset_specs()
    }

    assert assets == {
        "raw_archive": ("archive", ["tar"], [], False),
        "listings": ("catalogue", ["parquet", "polars", "postgres"], [], False),
        "image_paths": ("catalogue", ["parquet", "polars", "postgres"], ["raw_archive"], False),
        "image_embeddings": ("embeddings", ["huggingface", "postgres"], ["image_paths"], True),
        "embedding_index": ("embeddings", ["postgres"], ["image_embeddings", "image_paths"], False),
        "golden_queries": ("search", ["postgres"], ["embedding_index"], False),
        "search_report": ("search", ["matplotlib"], ["embedding_index", "listings"], False),
        "storage_ladder": ("search", ["matplotlib", "postgres"], ["embedding_index"], False),
    }


def test_every_asset_and_check_is_described_and_every_wrong_result_is_blocked(definitions):
    assert all(len(spec.description) > 40 for spec in definitions.resolve_all_asset_specs())
    checks = {
        spec.name: (spec.asset_key.to_user_string(), spec.blocking, spec.partitions_def is not None)
        for check in definitions.asset_checks
        for spec in check.check_specs
    }
    assert checks == {
        "filter_is_sound": ("image_paths", True, False),
        "every_image_is_accounted_for": ("image_embeddings", True, True),
        "vectors_have_unit_length": ("image_embeddings", True, True),
        "vectors_are_of_one_model": ("image_embeddings", True, True),
        "few_images_failed": ("image_embeddings", False, True),
        "index_is_used": ("embedding_index", True, False),
        "canary_query_answers": ("embedding_index", True, False),
        "recall_meets_target": ("embedding_index", True, False),
        "sizes_are_covered": ("embedding_index", False, False),
        "golden_queries_are_steady": ("golden_queries", False, False),
        "report_is_fresh": ("search_report", False, False),
    }


def test_partitions_are_a_setting():
    settings = Settings.read(partitions=3)

    embeddings = build_definitions(settings).resolve_asset_graph().get(dg.AssetKey("image_embeddings"))

    assert embeddings.partitions_def.get_partition_keys() == ["00of3", "01of3", "02of3"]


def test_by_default_there_are_64_partitions():
    embeddings = build_definitions(Settings.read()).resolve_asset_graph().get(dg.AssetKey("image_embeddings"))

    assert len(embeddings.partitions_def.get_partition_keys()) == 64


def test_what_runs_by_itself_is_described_and_switched_off_until_somebody_wants_it():
    jobs = {job.name: bool(job.description) for job in defs.jobs}
    schedules = {
        schedule.name: (schedule.job_name, schedule.cron_schedule, schedule.default_status.value)
        for schedule in defs.schedules
    }
    sensors = {sensor.name: sensor.default_status.value for sensor in defs.sensors}

    names = ("search_job", "retry_failures_job", "refresh_job", "embed_job", "report_job", "ladder_job", "checks_job")
    assert jobs == dict.fromkeys(names, True)
    assert schedules == {
        "fill_partitions": ("embed_job", "*/10 * * * *", "STOPPED"),
        "renew_report": ("report_job", "0 5 * * *", "STOPPED"),
        "run_checks": ("checks_job", "0 6 * * *", "STOPPED"),
    }
    assert sensors == dict.fromkeys(("archive_changed", "report_failures", "automate_partitions"), "STOPPED")
    assert all(each.description for each in (*defs.schedules, *defs.sensors))


def test_a_time_that_is_no_cron_expression_is_refused_by_its_name():
    with pytest.raises(SettingsError) as refused:
        build_definitions(Settings.read(checks_cron="now and then"))

    assert str(refused.value) == (
        "ABO_CHECKS_CRON has value 'now and then': that is no cron expression such as '*/10 * * * *'."
    )


def test_loading_takes_under_three_seconds_and_no_model_library():
    program = f"""
import json, sys, time
started = time.perf_counter()
from abo_pipeline.definitions import defs
defs.resolve_asset_graph()
seconds = time.perf_counter() - started
print(json.dumps([seconds, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    # The best of three: the machine may be busy with something else.
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)
        for _ in range(3)
    ]

    assert [heavy for _, heavy in runs] == [[], [], []]
    assert min(seconds for seconds, _ in runs) < 3


def test_dagster_validates_the_workspace_from_another_directory(tmp_path):
    dagster = Path(sys.executable).with_name("dagster")

    done = subprocess.run(
        [dagster, "definitions", "validate", "-w", PROJECT_ROOT / "workspace.yaml"],
        cwd=tmp_path,
        env=os.environ | {"DAGSTER_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "All code locations passed validation" in done.stdout + done.stderr


def test_no_password_is_in_what_the_definitions_show():
    settings = Settings.read(database_url="postgresql://me:s3cret@localhost/x")

    shown = build_definitions(settings)

    schemas = [getattr(resource, "config_schema", None) for resource in shown.resources.values()]
    assert "s3cret" not in repr(shown) + repr(shown.resources) + repr(schemas)
