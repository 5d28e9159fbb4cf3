"""What a process may use, as Linux tells a container: in the files of a machine that are made here."""

import os
from pathlib import Path

import psutil
import pytest

from abo_pipeline import machine

WHOLE = int(psutil.virtual_memory().total)


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_CONTAINER", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return tmp_path


def write(container: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (container / name).parent.mkdir(exist_ok=True)
        (container / name).write_text(content)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "3200000 100000\n"}, 8),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_cores_are_those_that_are_allowed_or_as_many_as_a_containers_quota_fills(container, files, cores):
    write(container, files)

    assert machine.cores() == cores


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, WHOLE),
        ({"memory.max": "max\n"}, WHOLE),
        ({"memory.max": "1073741824\n"}, 1 << 30),
        ({"memory/memory.limit_in_bytes": "1073741824\n"}, 1 << 30),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, WHOLE),
    ],
)
def test_memory_is_the_machines_or_a_containers_limit(container, files, memory):
    write(container, files)

    assert machine.memory_bytes() == memory
