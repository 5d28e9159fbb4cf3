"""When assets are made without being asked, said of the assets themselves: the declarative way.

It does nothing until the sensor ``automate_partitions`` is switched on. The other way is in ``schedules``; one of the
two is on at a time, and the schedule stands back while the sensor is on. Conditions know Dagster's records alone, not
the rows in Postgres, and cannot cap how much is asked for at once: the run queue does.
"""

from typing import Any

import dagster as dg
from dagster_shared.check import CheckError

from abo_pipeline.errors import SettingsError
from abo_pipeline.settings import Settings

Condition = dg.AutomationCondition[Any]


def fill_condition(settings: Settings) -> Condition:
    """For a partition at ``ABO_FILL_CRON``: it is missing, its last run failed, or the catalogue was read again.

    Not ``on_missing``, which means partitions that are added later and never asks for those that are there already.
    """
    read_again = dg.AutomationCondition.any_deps_updated().since_last_handled()
    wanted = dg.AutomationCondition.missing() | dg.AutomationCondition.execution_failed() | read_again
    return _when_due(cron(settings, "fill_cron")) & wanted & _can_be_made()


def follow_condition() -> Condition:
    """For what is quickly renewed: whenever something upstream was made, once all of it is there."""
    return dg.AutomationCondition.eager()


def renew_condition(settings: Settings) -> Condition:
    """For what takes its time: at the times of ``ABO_REPORT_CRON``."""
    return _when_due(cron(settings, "report_cron")) & _can_be_made()


def cron(settings: Settings, name: str) -> str:
    """The cron expression of a setting.

    Raises:
        SettingsError: it is none.
    """
    expression = str(getattr(settings, name))
    try:
        _when_due(expression)
    except CheckError:
        raise SettingsError(
            f"ABO_{name.upper()} has value {expression!r}: that is no cron expression such as '*/10 * * * *'."
        ) from None
    return expression


def _when_due(cron: str) -> Condition:
    return dg.AutomationCondition.cron_tick_passed(cron)


def _can_be_made() -> Condition:
    return ~dg.AutomationCondition.in_progress() & ~dg.AutomationCondition.any_deps_missing()
