"""Schedules: what is asked for at set times. All are off until somebody switches them on in the UI.

What they launch is in ``jobs``; the declarative way to the same end is in ``conditions``.
"""

from collections.abc import Sequence

import dagster as dg
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.storage.dagster_run import FINISHED_STATUSES, NOT_FINISHED_STATUSES

from abo_pipeline.defs.conditions import cron
from abo_pipeline.defs.history import EMBEDDINGS, report_as_of
from abo_pipeline.defs.jobs import checks_job, embed_job, report_job
from abo_pipeline.defs.partitions import image_partitions
from abo_pipeline.defs.resources import StoreResource
from abo_pipeline.embedding import are_too_many
from abo_pipeline.sampling import partition_keys, partition_starts
from abo_pipeline.settings import Settings
from abo_pipeline.store.spaces import Account

PARTITION = "dagster/partition"
_TRIES = 3

AUTOMATION_SENSOR = "automate_partitions"
"""The declarative way; while it is on, the schedule asks for nothing."""


def build_schedules(settings: Settings) -> Sequence[dg.ScheduleDefinition]:
    """The schedules, at the times that the settings say.

    Raises:
        SettingsError: a time is no cron expression.
    """
    return [_fill_partitions(settings), _renew_report(settings), _run_checks(settings)]


def _fill_partitions(settings: Settings) -> dg.ScheduleDefinition:
    @dg.schedule(
        cron_schedule=cron(settings, "fill_cron"),
        job=embed_job,
        execution_timezone="UTC",
        description="Asks for the partitions in which something is to do, in the order of the sample key, "
        f"{settings.fill_per_tick} at a time: the small sizes are complete first. One that is queued or running is not "
        "asked for again; one of which too many images failed is left to a person.",
    )
    def fill_partitions(
        context: dg.ScheduleEvaluationContext,
        settings: dg.ResourceParam[Settings],
        store: dg.ResourceParam[StoreResource],
    ) -> Sequence[dg.RunRequest] | dg.SkipReason:
        if reason := _stands_back(context.instance, settings):
            return dg.SkipReason(reason)
        if _backfill_is_under_way(context.instance):
            # Its runs come about a few at a time, so which partitions it will yet ask for cannot be seen from them.
            return dg.SkipReason("a backfill of image_embeddings is under way")
        with store.opened() as opened:
            accounts = opened.accounts(settings.space_name, partition_starts(settings.partitions))
        if not sum(account.kept for account in accounts):
            return dg.SkipReason(
                "there is no catalogue yet: materialize raw_archive and image_paths, or run refresh_job"
            )
        # In the order of the sample key, so that what is embedded is always a prefix of the catalogue.
        keys = partition_keys(settings.partitions)
        statuses = context.instance.get_status_by_partition(EMBEDDINGS, keys, image_partitions(settings)) or {}
        wanted = [
            key
            for key, account in zip(keys, accounts, strict=True)
            if _wants_a_run(account, statuses.get(key), settings.max_failed_share)
        ]
        running = _under_way(context.instance)
        idle = [key for key in wanted if key not in running]
        if not idle:
            return dg.SkipReason(_why_none(accounts, running & set(keys), settings))
        # Those that fail every time must not keep the others from being asked for.
        idle.sort(key=lambda key: _fails_every_time(context.instance, key, statuses.get(key)))
        return [
            dg.RunRequest(run_key=f"{context.scheduled_execution_time:%Y-%m-%dT%H:%M}:{key}", partition_key=key)
            for key in idle[: settings.fill_per_tick]
        ]

    return fill_partitions


def _wants_a_run(account: Account, status: object, max_failed_share: float) -> bool:
    """Rows say what is to do; Dagster's records, whether the partition is known to be done.

    A partition of which too many images failed would fail again and again: its images are tried again only when asked
    for, so its run would find nothing to do.
    """
    if not account.settled:
        return True
    if are_too_many(account.failed, account.kept, max_failed_share):
        return False
    return getattr(status, "value", None) != "MATERIALIZED"


def _why_none(accounts: Sequence[Account], running: set[str], settings: Settings) -> str:
    refused = sum(are_too_many(account.failed, account.kept, settings.max_failed_share) for account in accounts)
    words = f"{len(running)} partitions are under way, and nothing else is to do" if running else "nothing is to do"
    if refused:
        words += (
            f"; of {refused} partitions more images failed than may: see `abo failures`, mend the cause, and launch "
            "retry_failures_job"
        )
    return words


def _stands_back(instance: dg.DagsterInstance, settings: Settings) -> str | None:
    """Why a schedule that fills or renews asks for nothing, whatever there is to do; None if it does."""
    if not settings.are_current():
        return "a run left other settings since this code location was loaded: press Reload at it"
    if any(
        state.instigator_name == AUTOMATION_SENSOR and state.is_running for state in instance.all_instigator_state()
    ):
        return f"the sensor {AUTOMATION_SENSOR} is on, and asks for the same; switch one of them off"
    return None


def _under_way(instance: dg.DagsterInstance) -> set[str]:
    """Partitions of the embeddings that a run is queued for or at work on.

    By the runs themselves: a queued one has not said anything of its partition yet.
    """
    return {
        run.tags[PARTITION]
        for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
        if PARTITION in run.tags and _embeds(run)
    }


def _backfill_is_under_way(instance: dg.DagsterInstance) -> bool:
    unfinished = BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING])
    return any(
        EMBEDDINGS in (backfill.asset_selection or ()) or embed_job.name in (backfill.partition_set_name or "")
        for backfill in instance.get_backfills(filters=unfinished)
    )


def _fails_every_time(instance: dg.DagsterInstance, key: str, status: object) -> bool:
    """Whether the last few runs of a partition failed, one and all."""
    if getattr(status, "value", None) != "FAILED":
        return False
    of_partition = dg.RunsFilter(tags={PARTITION: key}, statuses=FINISHED_STATUSES)
    last = [run for run in instance.get_runs(of_partition, limit=10) if _embeds(run)][:_TRIES]
    return len(last) == _TRIES and all(run.status is dg.DagsterRunStatus.FAILURE for run in last)


def _embeds(run: dg.DagsterRun) -> bool:
    return run.asset_selection is None or EMBEDDINGS in run.asset_selection


def _renew_report(settings: Settings) -> dg.ScheduleDefinition:
    @dg.schedule(
        cron_schedule=cron(settings, "report_cron"),
        job=report_job,
        execution_timezone="UTC",
        description="Renews index, fixed queries and report, if an embedding changed since the last report.",
    )
    def renew_report(
        context: dg.ScheduleEvaluationContext,
        settings: dg.ResourceParam[Settings],
        store: dg.ResourceParam[StoreResource],
    ) -> dg.RunRequest | dg.SkipReason:
        if reason := _stands_back(context.instance, settings):
            return dg.SkipReason(reason)
        if context.instance.get_runs(dg.RunsFilter(job_name=report_job.name, statuses=NOT_FINISHED_STATUSES), limit=1):
            return dg.SkipReason("it is being renewed")
        with store.opened() as opened:
            space = opened.find_space(settings.space_name)
            changed = space.changed_at() if space and space.account().embedded else None
        if changed is None:
            return dg.SkipReason("nothing is embedded yet")
        shows = report_as_of(context.instance, settings)
        if shows is not None and shows >= changed:
            return dg.SkipReason(f"nothing was embedded since the report of {shows:%Y-%m-%d %H:%M} UTC")
        return dg.RunRequest()

    return renew_report


def _run_checks(settings: Settings) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name="run_checks",
        job=checks_job,
        cron_schedule=cron(settings, "checks_cron"),
        execution_timezone="UTC",
        description="Looks whether index, sizes, fixed queries and report are still as they should be.",
    )
