"""Runs the whole graph in this process, in order, through the same Dagster instance that the UI shows.

For the command line. What an asset does is in ``defs.assets``; what a person sees while it runs, in ``terminal``.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import dagster as dg
from filelock import FileLock, Timeout

from abo_pipeline.definitions import build_definitions
from abo_pipeline.defs.resources import Progress, StoreResource
from abo_pipeline.encoder import encoder_from
from abo_pipeline.errors import CheckError, SettingsError
from abo_pipeline.sampling import partition_keys, partition_starts
from abo_pipeline.settings import PROJECT_ROOT, Settings
from abo_pipeline.store.spaces import Account

BEFORE = ("raw_archive", "listings", "image_paths")
EMBEDDINGS = "image_embeddings"
AFTER = ("embedding_index", "search_report")


class PipelineProgress(Progress, Protocol):
    """A ``Progress`` that is also told of the run's own steps."""

    def pending(self, images: int) -> None:
        """So many images are to be embedded, over all partitions."""

    def finished(self, asset: str, metadata: dict[str, Any]) -> None:
        """An asset is done. Of image_embeddings the metadata are sums over its partitions, and their account."""


def dagster_home(settings: Settings) -> Path:
    """The folder of Dagster's instance: ``DAGSTER_HOME``, or one in the state folder, configured on first use.

    Raises:
        SettingsError: the state folder cannot be written to.
    """
    if named := os.environ.get("DAGSTER_HOME"):
        return Path(named)
    home = settings.folder("dagster")
    configuration = PROJECT_ROOT / "dagster.yaml"
    if configuration.is_file() and not (home / "dagster.yaml").exists():
        shutil.copyfile(configuration, home / "dagster.yaml")
    return home


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Dagster's instance: the one that ``abo dev`` shows."""
    with dg.DagsterInstance.from_config(str(dagster_home(settings))) as instance:
        yield instance


def run_pipeline(
    settings: Settings,
    progress: PipelineProgress,
    *,
    retry_failures: bool = False,
    allow_removal: bool = False,
    **resource_overrides: Any,
) -> None:
    """Materialize every asset, and those partitions of the embeddings in which something is to do.

    Database, model and space are tried before anything is fetched or written. The settings are remembered for the
    commands that follow as soon as archive and catalogue have proved good too.

    Args:
        settings: of the run.
        progress: told what happens.
        retry_failures: try images again that failed before.
        allow_removal: go on even if many embedded images are no longer in the catalogue.
        resource_overrides: as ``build_definitions`` takes them.

    Raises:
        AboError: what stopped an asset, or a blocking check that did not pass.
        KeyboardInterrupt: Ctrl-C; what was committed stays.
    """
    definitions = build_definitions(settings, progress=progress, **resource_overrides)
    encoder = resource_overrides.get("encoder") or encoder_from(settings)
    with _only_run(settings), dagster_instance(settings) as instance:
        with StoreResource(settings).opened() as store:
            store.open_space(settings.space_name, encoder)
        for asset in BEFORE:
            config = {"ops": {asset: {"config": {"allow_removal": allow_removal}}}} if asset == "image_paths" else {}
            progress.finished(asset, _materialize(definitions, instance, asset, run_config=config))
        # From here on there is something to look at and to go on with, even if this run is interrupted.
        settings.remember()
        progress.finished(EMBEDDINGS, _embed(definitions, instance, settings, progress, retry_failures))
        for asset in AFTER:
            progress.finished(asset, _materialize(definitions, instance, asset))


@contextmanager
def _only_run(settings: Settings) -> Iterator[None]:
    """Be the only run on a state folder: two with different archives would undo one another's catalogue."""
    lock = FileLock(settings.folder() / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SettingsError(
            f"Another run is at work on the state folder {settings.state_dir}. "
            "Wait for it, or set ABO_STATE_DIR to another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _embed(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    settings: Settings,
    progress: PipelineProgress,
    retry_failures: bool,
) -> dict[str, int]:
    """Run the partitions in which something is to do, or of which Dagster does not know that nothing is."""
    keys = partition_keys(settings.partitions)
    before = dict(zip(keys, _accounts(settings), strict=True))
    materialized = instance.get_materialized_partitions(dg.AssetKey(EMBEDDINGS))
    to_run = {
        key: account
        for key, account in before.items()
        if not account.settled or key not in materialized or (retry_failures and account.failed)
    }
    progress.pending(sum(account.pending + retry_failures * account.failed for account in to_run.values()))
    totals = dict.fromkeys(("embedded", "skipped", "failed", "failed_before", "removed"), 0)
    run_config = {"ops": {EMBEDDINGS: {"config": {"retry_failures": retry_failures}}}}
    for key, account in before.items():
        if key in to_run:
            metadata = _materialize(definitions, instance, EMBEDDINGS, partition_key=key, run_config=run_config)
        else:
            metadata = {"skipped": account.embedded, "failed_before": account.failed}
        for name in totals:
            totals[name] += metadata.get(name, 0)
    after = _accounts(settings)
    return totals | {
        "partitions_run": len(to_run),
        "kept": sum(account.kept for account in after),
        "total_embedded": sum(account.embedded for account in after),
        "total_failed": sum(account.failed for account in after),
    }


def _accounts(settings: Settings) -> list[Account]:
    with StoreResource(settings).opened() as store:
        return store.accounts(settings.space_name, partition_starts(settings.partitions))


def _materialize(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    asset: str,
    *,
    partition_key: str | None = None,
    run_config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One run of one asset and its checks; its metadata as plain values."""
    job = definitions.resolve_implicit_global_asset_job_def()
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    run_id = str(uuid.uuid4())
    try:
        result = job.execute_in_process(
            run_config={**quiet, **(run_config or {})},
            instance=instance,
            partition_key=partition_key,
            asset_selection=[dg.AssetKey(asset)],
            run_id=run_id,
        )
    except dg.DagsterExecutionInterruptedError:
        # Dagster's own exception for Ctrl-C, which nothing outside of it would take for one.
        raise KeyboardInterrupt from None
    except dg.DagsterError as error:
        if wrong := _checks_not_passed(instance, run_id):
            raise CheckError(wrong) from error
        raise
    (materialization,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in materialization.metadata.items()}


def _checks_not_passed(instance: dg.DagsterInstance, run_id: str) -> str:
    """The blocking checks of a run that did not pass, in their own words: Dagster's exception has only their names."""
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [entry.dagster_event.asset_check_evaluation_data for entry in entries if entry.dagster_event]
    return " ".join(
        f"{check.asset_key.to_user_string()} did not pass its check {check.check_name}: {check.description}."
        for check in found
        if check.blocking and not check.passed
    )
