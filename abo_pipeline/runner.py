"""Runs the whole graph in this process, in order, through the same Dagster instance that the UI shows.

For the command line. What an asset does is in ``defs.assets``; what a person sees while it runs, in ``terminal``.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import dagster as dg
from dagster._core.instance.ref import InstanceRef
from filelock import FileLock, Timeout
from sqlalchemy.exc import OperationalError

from abo_pipeline.definitions import build_definitions
from abo_pipeline.defs.history import checks_not_passed, plan_of
from abo_pipeline.defs.resources import Progress, StoreResource
from abo_pipeline.download import write_whole
from abo_pipeline.embedding import are_too_many
from abo_pipeline.encoder import encoder_from
from abo_pipeline.errors import CatalogError, CheckError, SettingsError
from abo_pipeline.ladder import Ladder, read_ladder
from abo_pipeline.local_launcher import PROCESS_TAG, this_process
from abo_pipeline.plan import Plan
from abo_pipeline.pools import make_pools
from abo_pipeline.sampling import partition_keys, partition_starts
from abo_pipeline.search import searched_space
from abo_pipeline.settings import PROJECT_ROOT, Settings
from abo_pipeline.store.spaces import Account

BEFORE = ("raw_archive", "listings", "image_paths")
EMBEDDINGS = "image_embeddings"
LADDER = "storage_ladder"

_NO_CAPTURE = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
"""What a step writes to stdout and stderr stays at the terminal. Captured, it would go to a file, which four more
processes a step copy to the terminal when they like: bars would stand still, and Ctrl-C end in their tracebacks."""

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
AFTER = ("embedding_index", "golden_queries", "search_report")
ASSETS = (*BEFORE, EMBEDDINGS, *AFTER)


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
        OSError: likewise, where it is full.
    """
    if named := os.environ.get("DAGSTER_HOME"):
        return Path(named)
    home = settings.folder("dagster")
    configuration = PROJECT_ROOT / "dagster.yaml"
    if configuration.is_file() and not (home / "dagster.yaml").exists():
        write_whole(home / "dagster.yaml", partial(shutil.copyfile, configuration))
    return home


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Dagster's instance: the one that ``abo dev`` shows.

    Raises:
        SettingsError: Dagster's records, or what an asset keeps in a file, cannot be written, also in the block.
    """
    try:
        ref = InstanceRef.from_dir(str(dagster_home(settings)), overrides={"compute_logs": _NO_CAPTURE})
        with dg.DagsterInstance.from_ref(ref) as instance:
            make_pools(instance)
            yield instance
    except OperationalError as error:
        # Not of our own database: its errors are StoreErrors by the time they come here.
        raise _unwritable("Dagster's records", settings, str(error.orig)) from error
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise _unwritable(str(error.filename or "A file"), settings, error.strerror or str(error)) from error


def _unwritable(what: str, settings: Settings, reason: str) -> SettingsError:
    home = os.environ.get("DAGSTER_HOME")
    where = f"DAGSTER_HOME {home}" if home else f"the state folder {settings.state_dir}"
    return SettingsError(
        f"{what} cannot be written, in {where}: {reason}. Make room on that disk, or see that it can be written to, "
        "and run again; what was committed is kept."
    )


def run_pipeline(
    settings: Settings,
    progress: PipelineProgress,
    *,
    retry_failures: bool = False,
    allow_removal: bool = False,
    until: str = AFTER[-1],
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
        until: the last of ``ASSETS`` to materialize.
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
        for asset in ASSETS[: ASSETS.index(until) + 1]:
            if asset == EMBEDDINGS:
                # From here on there is something to look at and to go on with, even if this run is interrupted.
                settings.remember()
                progress.finished(asset, _embed(definitions, instance, settings, progress, retry_failures))
            else:
                config = {"allow_removal": allow_removal} if asset == "image_paths" else None
                progress.finished(asset, _materialize(definitions, instance, asset, config=config))
        settings.remember()


def space_searched_instead(settings: Settings) -> str | None:
    """The space that searches use, if a run's is another one and holds something; None if there is nothing to say."""
    with StoreResource(settings).opened() as store:
        name = searched_space(store, settings)
        (account,) = store.accounts(settings.space_name, [0])
    return name if name != settings.space_name and account.embedded else None


def retry_failures(settings: Settings, progress: PipelineProgress, **resource_overrides: Any) -> None:
    """Try the failed images again and no others; then, if any became a vector, renew what is built on them.

    Args:
        settings: of the run whose failures they are.
        progress: told what happens.
        resource_overrides: as ``build_definitions`` takes them.

    Raises:
        AboError: what stopped it, or a blocking check that did not pass.
        KeyboardInterrupt: Ctrl-C; what was committed stays.
    """
    definitions = build_definitions(settings, progress=progress, **resource_overrides)
    with _only_run(settings), dagster_instance(settings) as instance:
        progress.pending(sum(account.failed for account in _accounts(settings)))
        totals = _execute(definitions, instance, "retry_failures_job").output_for_node("replay_failures")
        after = _sums(_accounts(settings))
        none = dict.fromkeys(("skipped", "failed_before", "removed"), 0)
        progress.finished(EMBEDDINGS, none | {"skipped": after["total_embedded"] - totals["embedded"]} | totals | after)
        if totals["embedded"]:
            for asset in AFTER:
                progress.finished(asset, _materialize(definitions, instance, asset))


def build_indexes(
    settings: Settings,
    progress: PipelineProgress,
    *,
    sizes: Sequence[int] = (),
    rebuild: bool = False,
    **resource_overrides: Any,
) -> dict[str, Any]:
    """Build the vector indexes and measure them; the strategy is remembered for the commands that follow.

    Args:
        settings: of the run whose vectors they are over.
        progress: told what happens.
        sizes: only these of the settings' sizes; all by default.
        rebuild: build anew what is there.
        resource_overrides: as ``build_definitions`` takes them.

    Returns:
        The asset's metadata.

    Raises:
        AboError: what stopped it, or a blocking check that did not pass.
        KeyboardInterrupt: Ctrl-C; the indexes before still serve.
    """
    definitions = build_definitions(settings, progress=progress, **resource_overrides)
    config = {"rebuild": rebuild, **({"sizes": list(sizes)} if sizes else {})}
    with _only_run(settings), dagster_instance(settings) as instance:
        metadata = _materialize(definitions, instance, "embedding_index", config=config)
        progress.finished("embedding_index", metadata)
        settings.remember("strategy")
    return metadata


def run_ladder(
    settings: Settings,
    progress: PipelineProgress,
    *,
    size: int | None = None,
    rungs: Sequence[str] | None = None,
    **resource_overrides: Any,
) -> Ladder:
    """Measure the storage ladder; a run of its own, that no other run waits for.

    Args:
        settings: of the run whose vectors they are.
        progress: told what happens.
        size: MAX_IMAGES; by default the largest size that is embedded.
        rungs: names of those to measure; by default all.
        resource_overrides: as ``build_definitions`` takes them.

    Raises:
        AboError: what stopped it.
        KeyboardInterrupt: Ctrl-C; nothing is left of it.
    """
    definitions = build_definitions(settings, progress=progress, **resource_overrides)
    given = {"size": size, "rungs": list(rungs) if rungs else None}
    config = {name: value for name, value in given.items() if value is not None}
    with dagster_instance(settings) as instance:
        metadata = _materialize(definitions, instance, LADDER, config=config)
    progress.finished(LADDER, metadata)
    return read_ladder(Path(metadata["numbers_file"]))


def plan_run(settings: Settings) -> Plan:
    """What a run would have to embed, as the catalogue and the rows are now.

    Raises:
        CatalogError: there is no catalogue yet.
        SettingsError: the state folder cannot be written to.
        StoreError: the database does not answer.
    """
    with StoreResource(settings).opened() as store, dagster_instance(settings) as instance:
        plan = plan_of(store, settings, instance)
    if not plan.kept:
        raise CatalogError(
            f"The catalogue {settings.catalogue} is empty so far. `abo run --until image_paths` fetches the archive "
            "and reads it, without embedding anything; then ask for the plan again."
        )
    return plan


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
) -> dict[str, Any]:
    """Run the partitions in which something is to do, or of which Dagster does not know that nothing is."""
    keys = partition_keys(settings.partitions)
    before = dict(zip(keys, _accounts(settings), strict=True))
    materialized = instance.get_materialized_partitions(dg.AssetKey(EMBEDDINGS))
    to_run = {
        key: account
        for key, account in before.items()
        if not account.settled
        or key not in materialized
        or (retry_failures and account.failed)
        # Nothing to do there, but it is not to be passed over in silence.
        or are_too_many(account.failed, account.kept, settings.max_failed_share)
    }
    progress.pending(sum(account.pending + retry_failures * account.failed for account in to_run.values()))
    totals = dict.fromkeys(("embedded", "skipped", "failed", "failed_before", "removed"), 0)
    precision = ""
    config = {"retry_failures": retry_failures}
    for key, account in before.items():
        if key in to_run:
            metadata = _materialize(definitions, instance, EMBEDDINGS, partition_key=key, config=config)
        else:
            metadata = {"skipped": account.embedded, "failed_before": account.failed}
        for name in totals:
            totals[name] += metadata.get(name, 0)
        precision = metadata.get("precision", precision)
    return totals | {"partitions_run": len(to_run), "precision": precision} | _sums(_accounts(settings))


def _accounts(settings: Settings) -> list[Account]:
    with StoreResource(settings).opened() as store:
        return store.accounts(settings.space_name, partition_starts(settings.partitions))


def _sums(accounts: Sequence[Account]) -> dict[str, int]:
    return {
        "kept": sum(account.kept for account in accounts),
        "total_embedded": sum(account.embedded for account in accounts),
        "total_failed": sum(account.failed for account in accounts),
    }


def _materialize(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    asset: str,
    *,
    partition_key: str | None = None,
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One run of one asset and its checks; its metadata as plain values."""
    result = _execute(
        definitions,
        instance,
        None,
        run_config={"ops": {asset: {"config": config}}} if config else {},
        partition_key=partition_key,
        asset_selection=[dg.AssetKey(asset)],
    )
    (materialization,) = result.asset_materializations_for_node(asset)
    return {
        name: [dict(record.data) for record in value.records]
        if isinstance(value, dg.TableMetadataValue)
        else value.value
        for name, value in materialization.metadata.items()
    }


def _execute(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    job: str | None,
    *,
    run_config: dict[str, Any] | None = None,
    **what: Any,
) -> dg.ExecuteInProcessResult:
    """One run of a job, or of the implicit one of all assets, in this process.

    Raises:
        CheckError: a blocking check did not pass.
        CatalogError: an asset that is needed has not been materialized.
        KeyboardInterrupt: Ctrl-C.
        AboError: what stopped an asset or op.
    """
    found = definitions.resolve_job_def(job) if job else definitions.resolve_implicit_global_asset_job_def()
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    run_id = str(uuid.uuid4())
    try:
        return found.execute_in_process(
            run_config={**quiet, **(run_config or {})},
            instance=instance,
            run_id=run_id,
            tags={PROCESS_TAG: this_process()},
            **what,
        )
    except dg.DagsterExecutionInterruptedError:
        # Dagster's own exception for Ctrl-C, which nothing outside of it would take for one.
        raise KeyboardInterrupt from None
    except dg.Failure as error:
        raise CatalogError(f"{error.description} `abo run` materializes everything that is missing.") from error
    except dg.DagsterError as error:
        if wrong := checks_not_passed(instance, run_id):
            raise CheckError(wrong) from error
        raise
