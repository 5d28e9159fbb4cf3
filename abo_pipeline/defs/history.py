"""What past runs tell: Dagster keeps the metadata of every materialization, and so the speed of every partition."""

import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import dagster as dg

from abo_pipeline.plan import Plan, Speed, make_plan
from abo_pipeline.sampling import partition_starts
from abo_pipeline.settings import Settings
from abo_pipeline.store import Store

EMBEDDINGS = dg.AssetKey("image_embeddings")
ASSUMED_DIMENSION = 512
"""Of a space that nothing has been embedded into yet: CLIP's usual one."""

_RUNS_LOOKED_AT = 1000
_RECORDS_LOOKED_AT = 100


def machine() -> str:
    """The name that runs of this machine are known by."""
    return platform.node() or "unknown"


def past_speed(instance: dg.DagsterInstance, model: str) -> Speed | None:
    """How quick the model was in the newest runs on this machine; None if there were none."""
    records = instance.fetch_materializations(EMBEDDINGS, limit=_RUNS_LOOKED_AT).records
    runs = [_plain(record.asset_materialization) for record in records if record.asset_materialization]
    mine = [run for run in runs if run.get("machine") == machine() and run.get("model") == model]
    return _speed([run for run in mine if run.get("embedded", 0) + run.get("failed", 0) > 0 and "seconds" in run])


def plan_of(store: Store, settings: Settings, instance: dg.DagsterInstance) -> Plan:
    """The plan for bringing the settings' space in line with the catalogue."""
    space = store.find_space(settings.space_name)
    return make_plan(
        store.accounts(settings.space_name, partition_starts(settings.partitions)),
        settings.sizes,
        space.dimension if space else ASSUMED_DIMENSION,
        past_speed(instance, space.model if space else settings.model),
    )


def made_for(settings: Settings) -> dict[str, str]:
    """Metadata that say for which catalogue and space something was made: one instance may see several."""
    return {"catalogue": settings.catalogue, "space": settings.space_name}


def last_metadata(instance: dg.DagsterInstance, asset: str, settings: Settings | None = None) -> dict[str, Any]:
    """The metadata of an asset's newest materialization, as plain values; empty if there is none.

    Args:
        instance: whose records.
        asset: its name.
        settings: only if it was made for the catalogue and the space that these name.
    """
    wanted = made_for(settings) if settings else {}
    # One instance may see several catalogues and spaces, of which another one's may be newer.
    found = islice(_materializations(instance, asset), _RECORDS_LOOKED_AT)
    return next((metadata for metadata in found if wanted.items() <= metadata.items()), {})


def _materializations(instance: dg.DagsterInstance, asset: str) -> Iterator[dict[str, Any]]:
    """The metadata of every materialization, newest first, a few at a time: a report's hold its pictures."""
    cursor = None
    while True:
        page = instance.fetch_materializations(dg.AssetKey(asset), limit=5, cursor=cursor)
        yield from (_plain(record.asset_materialization) for record in page.records if record.asset_materialization)
        if not page.has_more:
            return
        cursor = page.cursor


def report_as_of(instance: dg.DagsterInstance, settings: Settings) -> datetime | None:
    """The time up to which the newest report shows what was embedded; None if there is no report."""
    seconds = last_metadata(instance, "search_report", settings).get("embeddings_as_of")
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def checks_not_passed(instance: dg.DagsterInstance, run_id: str) -> str:
    """The blocking checks of a run that did not pass, in their own words: Dagster's exception has only their names."""
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [entry.dagster_event.asset_check_evaluation_data for entry in entries if entry.dagster_event]
    return " ".join(
        f"{check.asset_key.to_user_string()} did not pass its check {check.check_name}: {check.description}."
        for check in found
        if check.blocking and not check.passed
    )


def _plain(materialization: dg.AssetMaterialization) -> dict[str, Any]:
    return {name: value.value for name, value in materialization.metadata.items()}


def _speed(runs: Sequence[dict[str, Any]]) -> Speed | None:
    images = sum(run["embedded"] + run["failed"] for run in runs)
    seconds = sum(run["seconds"] for run in runs)
    return Speed(images, seconds, len(runs)) if seconds else None
