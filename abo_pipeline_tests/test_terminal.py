"""What a run shows: bars where there is a terminal, lines where there is none."""

import io

import pytest
from rich.console import Console

from abo_pipeline import terminal
from abo_pipeline.embedding import Tally
from abo_pipeline.terminal import Bars, TerminalProgress


def console(*, is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, soft_wrap=True, highlight=False)


def shown(console: Console) -> str:
    return console.file.getvalue()


def test_a_bar_goes_when_it_is_complete():
    screen = console(is_terminal=True)

    with Bars(screen) as bars:
        bars.update("indexing", 5, 10, "half")
        during = [task.description for task in bars._progress.tasks]
        bars.update("indexing", 10, 10, "whole")
        after = [task.description for task in bars._progress.tasks]

    assert (during, after) == (["indexing"], [])


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch):
    screen = console(is_terminal=False)
    monkeypatch.setattr(terminal, "_LINE_SECONDS", 0.0)

    with Bars(screen) as bars:
        bars.update("indexing", 5, 10, "5 of 10 MB")

    assert shown(screen) == "indexing    5 of 10 MB\n"


def test_images_are_counted_over_all_partitions(monkeypatch):
    out, err = console(is_terminal=False), console(is_terminal=False)
    monkeypatch.setattr(terminal, "_LINE_SECONDS", 0.0)

    with TerminalProgress(out, err) as progress:
        progress.pending(30)
        for partition, done in [("00of2", 0), ("00of2", 10), ("00of2", 14), ("01of2", 0), ("01of2", 16)]:
            progress.embedding(partition, Tally(kept=20, embedded=done))

    counted = [line.split()[1] for line in shown(err).splitlines()]
    assert counted == ["0/30", "10/30", "14/30", "14/30", "30/30"]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (
            dict(embedded=0, skipped=1200, failed=0, failed_before=0, removed=0),
            "nothing to embed, 1,200 were there already, failed 0",
        ),
        (
            dict(embedded=5, skipped=0, failed=2, failed_before=3, removed=4),
            "embedded 5, 0 were there already, failed 2, 3 failed before (--retry-failures tries them again), "
            "removed 4 that left the catalogue",
        ),
    ],
)
def test_what_became_of_the_images_is_said_in_words(metadata, words):
    out, err = console(is_terminal=False), console(is_terminal=False)
    account = dict(kept=1200, total_embedded=1199, total_failed=1)

    TerminalProgress(out, err).finished("image_embeddings", metadata | account)

    assert shown(out) == f"embeddings  {words}\n{'':<11} kept 1,200 = embedded 1,199 + failed 1\n"
