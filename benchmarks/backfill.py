"""How long a backfill of 64 partitions takes, one run each, under each way to run it; prints one Markdown table.

    python -m benchmarks.backfill
    python -m benchmarks.backfill --images 300 --partitions 16 --only "abo run" --only "Celery, 2 workers"

What is measured is the time from launching the backfill of ``image_embeddings`` until Dagster says that it is
complete, and for ``abo run`` that of the command, which also makes the assets before and after. Everything before the
embeddings is there already; no vector is. The pictures are drawn and the model is the small one, so most of the time
is what a run costs around its work, which is what the ways differ in; a large model on many pictures takes as long
under each.
Every way has a fresh database on one Postgres server.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from abo_pipeline.sample import Sample, draw_sample
from abo_pipeline.settings import PROJECT_ROOT
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline_tests.e2e.celery_workers import models_loaded, start_worker
from abo_pipeline_tests.e2e.harness import Process, child_environment, running_dagster, script
from abo_pipeline_tests.e2e.pipeline import CATALOGUE, EMBEDDINGS, Pipeline
from abo_pipeline_tests.e2e.redis_server import redis_server

LAPTOP = PROJECT_ROOT / "dagster.yaml"
CELERY = PROJECT_ROOT / "deploy" / "dagster-celery.yaml"


class Bench:
    """The drawn archive, a Postgres server, and a folder for everything that is made."""

    def __init__(self, folder: Path, sample: Sample, server: EmbeddedServer, partitions: int) -> None:
        self.folder = folder
        self.sample = sample
        self.server = server
        self.partitions = partitions

    @contextmanager
    def pipeline(self, name: str) -> Iterator[Pipeline]:
        """One with nothing done yet."""
        pipeline = Pipeline.over(
            self.sample, self.folder / name, self.database(name), partitions=str(self.partitions), batch_size="64"
        )
        try:
            yield pipeline
        finally:
            pipeline.close()

    def database(self, name: str) -> str:
        """A new database; its address."""
        with psycopg.connect(
            make_url(self.server.url("postgres")).set(drivername="postgresql").render_as_string(), autocommit=True
        ) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.server.url(name)

    def stock_daemon(self) -> float:
        """What `make dev` starts: the laptop's dagster.yaml, and a daemon that looks for backfills every 30 s."""
        return self._under_dagster("stock", interval=30)

    def tuned_daemon(self) -> float:
        """The same with a daemon that looks every second."""
        return self._under_dagster("tuned", interval=1)

    def celery(self) -> float:
        """Runs go through Redis to two workers that keep the model; Dagster's records are in Postgres."""
        with redis_server(self.folder / "redis") as broker:
            records = self.database("celery_dagster").replace("+psycopg:", "+psycopg2:")
            environment = {"ABO_CELERY_BROKER": broker, "DAGSTER_POSTGRES_URL": records}
            return self._under_dagster("celery", interval=1, configuration=CELERY, workers=2, environment=environment)

    def command(self) -> float:
        """One process runs one partition after another."""
        with self.pipeline("command") as pipeline:
            process = Process(
                [script("abo"), "run"],
                environment=child_environment(pipeline.environment),
                log=self.folder / "command.log",
                cwd=self.folder,
            )
            with process:
                begun = time.perf_counter()
                while process.running:
                    time.sleep(0.05)
                seconds = time.perf_counter() - begun
            if process.exit_code:
                raise RuntimeError(process.tail())
            pipeline.assert_complete()
            return seconds

    def _under_dagster(
        self,
        name: str,
        *,
        interval: float,
        configuration: Path = LAPTOP,
        workers: int = 0,
        environment: dict[str, str] | None = None,
    ) -> float:
        with self.pipeline(name) as pipeline, ExitStack() as stack:
            dagster = stack.enter_context(
                running_dagster(
                    self.folder / name / "home",
                    pipeline.environment | (environment or {}),
                    configuration=configuration,
                    interval=interval,
                )
            )
            started = [start_worker(dagster, f"worker-{number}") for number in range(workers)]
            # A run and no backfill: with the stock daemon, that of three assets in a row would take minutes.
            before = dagster.wait_for_run(dagster.launch_run(assets=CATALOGUE), seconds=600)
            if before.status != "SUCCESS":
                raise RuntimeError("\n".join(dagster.messages(before.id)))
            begun = time.perf_counter()
            backfill = dagster.wait_for_backfill(dagster.launch_backfill([EMBEDDINGS]), seconds=3600)
            seconds = time.perf_counter() - begun
            if backfill.status != "COMPLETED_SUCCESS" or len(backfill.runs) != self.partitions:
                raise RuntimeError(f"{backfill}\n{dagster.tails()}")
            if any(models_loaded(worker) != 1 for worker in started):
                raise RuntimeError("a worker loaded its model again, or took no run")
            pipeline.assert_complete()
            return seconds


WAYS: dict[str, tuple[str, Callable[[Bench], float]]] = {
    "make dev": ("a process a run, one at a time; the daemon looks for backfills every 30 s", Bench.stock_daemon),
    "tuned daemon": ("the same; the daemon looks every second", Bench.tuned_daemon),
    "abo run": ("one process, one partition after another; with the assets before and after", Bench.command),
    "Celery, 2 workers": ("runs in two processes that keep the model; the daemon looks every second", Bench.celery),
}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1200, help="how many to draw (default %(default)s)")
    parser.add_argument("--partitions", type=int, default=64, help="runs of the backfill (default %(default)s)")
    parser.add_argument("--only", action="append", choices=WAYS, help="measure this way; may be given again")
    arguments = parser.parse_args()
    # What was started is stopped also when somebody ends this program other than by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="abo-backfill-") as name:
        folder = Path(name)
        sample = draw_sample(folder / "sample", images=arguments.images)
        server = EmbeddedServer(folder / "postgres")
        server.ensure_running()
        try:
            bench = Bench(folder, sample, server, arguments.partitions)
            print(f"{arguments.images:,} drawn images, {arguments.partitions} partitions, {os.cpu_count()} cores\n")
            print("| how | what runs | seconds | a partition |\n|---|---|--:|--:|")
            for way in arguments.only or WAYS:
                what, measure = WAYS[way]
                seconds = measure(bench)
                print(f"| {way} | {what} | {seconds:.0f} | {seconds / arguments.partitions:.2f} s |", flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
