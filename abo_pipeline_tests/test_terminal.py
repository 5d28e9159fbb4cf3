"""What a run shows: bars where there is a terminal, lines where there is none."""

import io
import re

import pytest
from rich.console import Console

from abo_pipeline import terminal
from abo_pipeline.embedding import Tally
from abo_pipeline.search import ExplainedHits
from abo_pipeline.store.analytics import Count, Facet, Facets
from abo_pipeline.store.explain import Explanation
from abo_pipeline.terminal import (
    Bars,
    TerminalProgress,
    explained_lines,
    facet_lines,
    index_notes,
    index_rows,
)


def console(*, is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, soft_wrap=True, highlight=False)


def shown(console: Console) -> str:
    return console.file.getvalue()


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)


def names(bars: Bars) -> list[str]:
    return [task.description for task in bars._progress.tasks]


def test_a_bar_goes_when_it_is_complete():
    screen = console(is_terminal=True)

    with Bars(screen) as bars:
        bars.update("indexing", 5, 10, "half")
        during = names(bars)
        bars.update("indexing", 10, 10, "whole")
        after = names(bars)

    assert (during, after) == (["indexing"], [])


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch):
    screen = console(is_terminal=False)
    monkeypatch.setattr(terminal, "_LINE_SECONDS", 0.0)

    with Bars(screen) as bars:
        bars.update("indexing", 5, 10, "5 of 10 MB")

    assert shown(screen) == "indexing    5 of 10 MB\n"


def test_what_is_done_to_find_an_encoder_is_said_line_by_line():
    out, err = console(is_terminal=False), console(is_terminal=False)

    with TerminalProgress(out, err) as progress:
        progress.choosing("trying int8, because OpenVINO is installed")
        progress.choosing("int8: 98.0% of the neighbours. It is taken.")

    assert shown(out).splitlines() == [
        "encoder     trying int8, because OpenVINO is installed",
        "encoder     int8: 98.0% of the neighbours. It is taken.",
    ]
    assert shown(err) == ""


def test_a_bar_moves_while_an_encoder_is_found_and_goes_with_the_first_image():
    out, screen = console(is_terminal=False), console(is_terminal=True)

    with TerminalProgress(out, screen) as progress:
        progress.choosing("making the int8 model")
        before = names(progress._bars)
        progress.embedding("00of2", Tally(kept=20, embedded=9))
        after = names(progress._bars)

    assert (before, after) == (["encoder"], [])


@pytest.mark.parametrize("out_is_terminal", [True, False])
def test_a_line_never_lands_on_a_bar(out_is_terminal):
    """Two consoles on one terminal do not know of each other: the bars' own one puts lines above them."""
    out, screen = console(is_terminal=out_is_terminal), console(is_terminal=True)

    with TerminalProgress(out, screen) as progress:
        progress.indexing("a.tar", 5, 10)
        progress.say("archive", "a.tar")

    assert ("a.tar\n" in shown(out), "archive" in shown(screen)) == (not out_is_terminal, out_is_terminal)


def test_the_speed_is_that_of_embedding_and_not_of_what_came_before(monkeypatch):
    out, err = console(is_terminal=False), console(is_terminal=False)
    monkeypatch.setattr(terminal, "_LINE_SECONDS", 0.0)
    clock = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])

    with TerminalProgress(out, err) as progress:
        progress.pending(30)
        progress.embedding("00of1", Tally(kept=30))
        clock[0] = 160.0
        progress.embedding("00of1", Tally(kept=30, embedded=10, elapsed=2.0))
        clock[0] = 163.0
        progress.embedding("00of1", Tally(kept=30, embedded=20, elapsed=5.0))

    speeds = [line.split(", ")[1:-1] for line in shown(err).splitlines()]
    assert speeds == [[], ["5.0/s"], ["4.0/s"]]


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


def test_it_is_said_in_which_precision_images_were_embedded():
    out, err = console(is_terminal=False), console(is_terminal=False)
    done = dict(embedded=7, skipped=0, failed=0, failed_before=0, removed=0, precision="bfloat16")

    TerminalProgress(out, err).finished("image_embeddings", done | dict(kept=7, total_embedded=7, total_failed=0))

    assert shown(out).endswith("kept 7 = embedded 7 + failed 0; computed in bfloat16\n")


def test_a_bar_counts_the_failures_of_all_partitions(monkeypatch):
    out, err = console(is_terminal=False), console(is_terminal=False)
    monkeypatch.setattr(terminal, "_LINE_SECONDS", 0.0)

    with TerminalProgress(out, err) as progress:
        progress.pending(30)
        progress.embedding("00of2", Tally(kept=20, embedded=9))
        progress.embedding("00of2", Tally(kept=20, embedded=18, failed=2))
        progress.embedding("01of2", Tally(kept=10, embedded=9, failed=1))

    lines = [re.sub(r" [\d.]+/s", " N/s", line) for line in shown(err).splitlines()]
    assert lines == [
        "embedding   9/30 images, N/s, partition 00of2",
        "embedding   20/30 images, N/s, 2 failed, partition 00of2",
        "embedding   30/30 images, N/s, 3 failed, partition 01of2",
    ]


def test_on_a_narrow_terminal_counts_and_times_can_still_be_read():
    screen = Console(file=io.StringIO(), force_terminal=True, width=72)

    with Bars(screen) as bars:
        bars.update("embedding", 137_000, 342_878, "137,000/342,878 images, 88.6/s, 2,000 failed, partition 12of64")

    first = next(line for line in plain(shown(screen)).split("\r") if line.startswith("embedding"))
    assert re.fullmatch(r"embedding +0:00:0\d -:--:-- 137,000/342,878 images, 88.6/s, 2,000.*", first)


INDEXES = {
    "indexes": [
        {
            **dict(size=100, rows=100, strategy="exact", why="it is quicker", bytes=0),
            **dict(effort_at_10=None, effort_at_100=None),
            **{f"{kind}_recall_at_{k}": 1.0 for kind in ("image", "text") for k in (10, 100)},
        },
        {
            **dict(size=2500, rows=2499, strategy="hnsw", why="", bytes=1_740_000),
            **dict(effort_at_10=80, effort_at_100=200),
            **dict(image_recall_at_10=1.0, image_recall_at_100=0.99996, text_recall_at_10=0.9912),
            **dict(text_recall_at_100=0.99),
        },
        # Nothing was measured of it.
        {
            **dict(size=10_000, rows=0, strategy="hnsw", why="", bytes=8192),
            **dict(effort_at_10=None, effort_at_100=None),
        },
    ]
}


def test_indexes_are_a_row_a_size_with_effort_and_recall():
    assert index_rows(INDEXES) == (
        ("size", "strategy", "effort", "image@10", "image@100", "text@10", "text@100", "MB"),
        [
            ("100", "exact", "-/-", "1.0000", "1.0000", "1.0000", "1.0000", "0.0"),
            ("2,500", "hnsw", "80/200", "1.0000", "1.0000", "0.9912", "0.9900", "1.7"),
            ("10,000", "hnsw", "-/-", "-", "-", "-", "-", "0.0"),
        ],
    )


def test_a_size_that_is_searched_otherwise_than_was_asked_for_has_a_note():
    assert index_notes(INDEXES | {"sizes_dropped": ""}) == ["size 100: it is quicker"]


def test_sizes_that_are_dropped_are_noted():
    assert index_notes({"indexes": [], "sizes_dropped": "20, 60"}) == [
        "dropped, for they are none of ABO_SIZES any more: 20, 60"
    ]


@pytest.mark.parametrize(
    ("built", "words"),
    [
        (0, "nothing to build; 100 exactly, 2,499 by hnsw, 0 by hnsw, 1.7 MB; recall at least 0.990"),
        (2, "built 2 in 3.2 s; 100 exactly, 2,499 by hnsw, 0 by hnsw, 1.7 MB; recall at least 0.990"),
    ],
)
def test_what_became_of_the_indexes_is_one_line(built, words):
    out, err = console(is_terminal=False), console(is_terminal=False)

    TerminalProgress(out, err).finished(
        "embedding_index", INDEXES | {"built": built, "seconds": 3.21, "bytes": 1_748_192}
    )

    assert shown(out) == f"index       {words}\n"


def test_counts_over_hits_are_a_line_an_attribute():
    chairs = Facet((Count("CHAIR", 1_200), Count("SOFA", 2)), 0)

    lines = facet_lines(Facets(chairs, Facet((), 7), Facet((Count("Fernhill", 1),), 3)), [Count("oak", 4)])

    assert lines == [
        ("product_type", "CHAIR 1,200, SOFA 2"),
        ("color", "unknown 7"),
        ("brand", "Fernhill 1, unknown 3"),
        ("keywords", "oak 4"),
    ]


def test_of_no_hits_there_is_nothing_to_count():
    none = Facet((), 0)

    assert facet_lines(Facets(none, none, none), []) == [
        ("product_type", "none"),
        ("color", "none"),
        ("brand", "none"),
        ("keywords", "none"),
    ]


@pytest.mark.parametrize(
    ("effort", "strategy"), [(80, "hnsw, effort 80: by the size's index"), (0, "hnsw: by the size's index")]
)
def test_how_an_answer_came_about_is_four_lines(effort, strategy):
    how = Explanation("hnsw", "by the size's index", "hnsw_clip_1", effort, "Index Scan hnsw_clip_1", 1_030, 1.5)

    assert explained_lines(ExplainedHits(how, 1, 12.34, 1.5, 0.26, {"a": 1})) == [
        ("strategy", strategy),
        ("plan", "Index Scan hnsw_clip_1"),
        ("rows visited", "1,030"),
        ("milliseconds", "12.3 encode, 1.5 SQL, 0.3 fetch"),
    ]


def test_of_several_searches_the_last_is_told():
    how = Explanation("exact", "this size has no index", None, 0, "Seq Scan embeddings_clip", 1_030, 1.5)

    assert explained_lines(ExplainedHits(how, 7, 12.34, 1.5, 0.26, {"a": 1}))[:2] == [
        ("searches", "7, each going on behind the one before; this is the last"),
        ("strategy", "exact: this size has no index"),
    ]
