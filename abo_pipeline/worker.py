"""The worker of one machine among several: takes runs from the queue in Redis, one at a time.

    celery --app abo_pipeline.worker worker --loglevel INFO --hostname one@%h

It goes by ``ABO_CELERY_BROKER``, by the pipeline's own settings, and by the ``dagster.yaml`` in ``DAGSTER_HOME``, in
which Dagster's storage must be the one that webserver and daemon use. The model stays loaded from one run to the next;
so does the code: restart the worker after an update. How a run gets here is in ``celery_launcher``.
"""

import os
import sys
from typing import Any

# Celery has no types.
from celery.concurrency.prefork import TaskPool  # type: ignore[import-untyped]
from celery.signals import worker_init  # type: ignore[import-untyped]
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_execute_job_task, create_resume_job_task

from abo_pipeline.celery_launcher import celery_settings
from abo_pipeline.errors import SettingsError

try:
    app = make_app(celery_settings(os.environ))  # type: ignore[no-untyped-call]
except SettingsError as error:
    # Whoever imports this module is Celery's command line, which would show a traceback.
    sys.exit(str(error))

execute_job = create_execute_job_task(app)
resume_job = create_resume_job_task(app)


@worker_init.connect  # type: ignore[untyped-decorator]
def _refuse_other_pools(sender: Any, **_: Any) -> None:
    """A worker that cannot answer while it runs something would be taken for dead, and its run started anew."""
    if not issubclass(sender.pool_cls, TaskPool):
        sys.exit(
            "This worker must run with Celery's prefork pool: with another it gives no sign of life during a run. "
            "Leave out --pool."
        )
