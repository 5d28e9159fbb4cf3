"""Sensors: what is watched all the time. All are off until somebody switches them on in the UI."""

from collections.abc import Sequence

import dagster as dg
import requests
from dagster._core.storage.tags import WILL_RETRY_TAG
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from abo_pipeline.defs.assets.archive import UNKNOWN_VERSION, source_of
from abo_pipeline.defs.history import checks_not_passed, last_metadata
from abo_pipeline.defs.jobs import refresh_job
from abo_pipeline.defs.schedules import AUTOMATION_SENSOR, PARTITION
from abo_pipeline.download import remote_stamp
from abo_pipeline.errors import AboError
from abo_pipeline.settings import Settings

_ALERT_TIMEOUT = 10
_PATIENT = HTTPAdapter(
    max_retries=Retry(3, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), allowed_methods=None)
)
_SECONDS = 300
CATALOGUE = dg.AssetKey("image_paths")
_OURS = f"{AboError.__module__}."


def build_sensors(settings: Settings) -> Sequence[dg.SensorDefinition]:
    """The sensors of a code location."""
    return [archive_changed, _report_failures(settings), automate_partitions]


automate_partitions = dg.AutomationConditionSensorDefinition(
    AUTOMATION_SENSOR,
    target=dg.AssetSelection.all(),
    description="Makes what the assets' automation conditions say: the declarative way to what the schedules "
    "fill_partitions and renew_report do. While it is on, these ask for nothing.",
)


@dg.sensor(
    job=refresh_job,
    minimum_interval_seconds=_SECONDS,
    description="Asks for a refresh of archive and catalogue when the image archive is another one than the one in "
    "use, by its ETag, or time and size. Images that are new are pending afterwards.",
)
def archive_changed(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]
) -> dg.RunRequest | dg.SkipReason:
    """Compare what is at the archive's source with what raw_archive took."""
    made = context.instance.get_latest_materialization_event(CATALOGUE)
    taken = last_metadata(context.instance, CATALOGUE.to_user_string())
    if made is None or taken.get("archive_version", UNKNOWN_VERSION) == UNKNOWN_VERSION:
        return dg.SkipReason("it is not known which archive is in use: materialize raw_archive and image_paths once")
    if taken["archive"] != source_of(settings):
        return dg.SkipReason(
            f"the catalogue was last read from {taken['archive']}, and ABO_ARCHIVE is {source_of(settings)}: "
            "materialize raw_archive and image_paths if it is to be this one"
        )
    now = remote_stamp(settings.archive, settings.folder("archives"))
    if now == taken["archive_version"]:
        return dg.SkipReason(f"the archive is as it was: {now}")
    # One request for each change: if its run fails, report_failures says so, and a person decides. A version that
    # comes back after another one is a change again, so its name alone will not do: Dagster takes a key only once.
    return dg.RunRequest(run_key=f"{now} after {made.timestamp}")


def _report_failures(settings: Settings) -> dg.SensorDefinition:
    @dg.run_failure_sensor(
        name="report_failures",
        minimum_interval_seconds=30,
        description="Says which run failed, at which partition, why, and what to do: in its log, as an observation on "
        "the assets concerned, and to ABO_ALERT_URL if that is set.",
    )
    def report_failures(context: dg.RunFailureSensorContext) -> None:
        words = failure_words(context)
        context.log.error(words)
        run = context.dagster_run
        for asset in sorted(run.asset_selection or ()):
            context.instance.report_runless_asset_event(
                dg.AssetObservation(
                    asset,
                    description=words,
                    partition=run.tags.get(PARTITION),
                    metadata={"failed_run": dg.MetadataValue.dagster_run(run.run_id), "what_to_do": words},
                )
            )
        if settings.alert_url is not None:
            _send(settings.alert_url.get_secret_value(), words)

    return report_failures


def failure_words(context: dg.RunFailureSensorContext) -> str:
    """Which run failed, at which partition, why, and what to do."""
    run = context.dagster_run
    partition = run.tags.get(PARTITION)
    what = ", ".join(asset.to_user_string() for asset in sorted(run.asset_selection or ())) or run.job_name
    where = f", partition {partition}" if partition else ""
    return f"Run {run.run_id[:8]} of {what}{where} failed: {_reason(context)} {_remedy(run)}"


def _reason(context: dg.RunFailureSensorContext) -> str:
    """What failed in its own words, which end with the remedy where they are ours."""
    if wrong := checks_not_passed(context.instance, context.dagster_run.run_id):
        return wrong
    for event in context.get_step_failure_events():
        messages = []
        error = event.step_failure_data.error
        while error is not None:
            messages.append(error.message.strip())
            error = error.cause
        if messages:
            ours = [message.removeprefix(_OURS) for message in messages if message.startswith(_OURS)]
            return f"{event.step_key}: {ours[0] if ours else messages[-1]}"
    return (context.failure_event.message or "it ended without a word.").strip()


def _remedy(run: dg.DagsterRun) -> str:
    """What holds for every failed run; what is to be done about the cause is in its own words."""
    if run.tags.get(WILL_RETRY_TAG) == "true":
        return "What was committed stays. Dagster runs it once more by itself."
    return "What was committed stays. When the cause is mended, launch the run again."


def _send(url: str, words: str) -> None:
    """Post an alert.

    Raises:
        Failure: it was not taken; the address, which is a secret, is not in the message.
    """
    try:
        # Dagster tells of a failed run once, so what is not taken now is lost.
        with requests.Session() as session:
            session.mount("http://", _PATIENT)
            session.mount("https://", _PATIENT)
            answer = session.post(url, json={"text": words}, timeout=_ALERT_TIMEOUT)
        answer.raise_for_status()
    except requests.RequestException as error:
        code = getattr(error.response, "status_code", None)
        raise dg.Failure(
            f"The alert was not taken by ABO_ALERT_URL ({f'status {code}' if code else type(error).__name__}): {words}"
        ) from None
