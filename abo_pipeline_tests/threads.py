"""Looking at what the threads of this process do."""

import sys
from types import CodeType, FrameType

from abo_pipeline import stages


def at_work() -> list[CodeType]:
    """What is being executed by threads that work for ``stages``; those that are free are somewhere else."""
    found = []
    for frame in sys._current_frames().values():
        found += [each.f_code for each in _callers(frame) if each.f_code.co_filename == stages.__file__]
    return found


def _callers(frame: FrameType | None) -> list[FrameType]:
    callers = []
    while frame:
        callers.append(frame)
        frame = frame.f_back
    return callers
