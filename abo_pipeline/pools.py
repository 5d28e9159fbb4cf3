"""The pool of the runs that embed: how many of them are at work at once is its limit.

Dagster would make the pool when the first such runs are queued, and at that moment lets all of them go at once. So it
is made before: by whoever opens the instance here (``runner``), and on a server by ``python -m abo_pipeline.pools``
after Dagster's tables were made.
"""

import dagster as dg

ENCODER_POOL = "encoder"
"""Runs that embed take turns in it: each holds a model in memory and uses every core."""


def make_pools(instance: dg.DagsterInstance) -> None:
    """Make the pool with the instance's ``default_limit``. One that is there keeps its limit, perhaps set by hand."""
    if ENCODER_POOL not in instance.event_log_storage.get_concurrency_keys():
        instance.event_log_storage.initialize_concurrency_limit_to_default(ENCODER_POOL)


if __name__ == "__main__":
    with dg.DagsterInstance.get() as found:
        make_pools(found)
