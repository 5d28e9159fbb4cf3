"""Plots of numbers, as they come out: panels, lines and what is written beside them."""

import numpy as np
import pytest

from abo_pipeline.evaluation import IMAGE, KS, TEXT, Point, SizeMeasures
from abo_pipeline.plots import recall_figure


def size_measures(size: int, strategy: str, efforts: dict[int, int], *tried: tuple[int, float, float]) -> SizeMeasures:
    """A size for which each of some efforts found so much in so many milliseconds, whatever was asked."""
    exact = [Point(kind, k, 0, 1.0, 9.0) for k in KS for kind in (IMAGE, TEXT)]
    points = [Point(kind, k, effort, recall, ms) for k in KS for kind in (IMAGE, TEXT) for effort, recall, ms in tried]
    return SizeMeasures(size, strategy, size, 0.99, ("{}",), efforts, tuple(exact + points))


EXACT = size_measures(100, "exact", {})
HNSW = size_measures(3_000, "hnsw", {10: 80, 100: 80}, (40, 0.97, 1.0), (80, 0.995, 2.0))
BIT = size_measures(4_544, "bit", {10: 3_200, 100: 3_200}, (100, 0.3, 1.0), (800, 0.9, 3.0), (3_200, 0.96, 20.0))


def lines(axes) -> list[tuple[list[float], list[float]]]:
    """Of the sizes, each drawn by itself: its milliseconds and recalls."""
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines() if len(line.get_xdata()) > 1]


def test_recall_has_a_panel_a_kind_of_query_and_number_of_hits_with_a_line_a_size():
    figure = recall_figure([EXACT, HNSW, BIT])

    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "image queries, 10 hits",
        "text queries, 10 hits",
        "image queries, 100 hits",
        "text queries, 100 hits",
    ]
    assert [axes.get_ylabel() for axes in figure.axes] == ["recall@10", "", "recall@100", ""]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", *["median milliseconds a query"] * 2]
    (legend,) = figure.legends
    assert [label.get_text() for label in legend.get_texts()] == [
        "100, exactly",
        "3,000 by hnsw",
        "4,544 by bit",
        "target 0.99",
        "effort that searches go by",
        "exact search",
    ]
    for axes in figure.axes:
        assert lines(axes) == [
            ([1.0, 2.0], [0.97, 0.995]),
            ([1.0, 3.0, 20.0], [0.3, 0.9, 0.96]),
            # Across the panel.
            ([0, 1], [0.99, 0.99]),
        ]
        single = [line for line in axes.get_lines() if len(line.get_xdata()) == 1]
        marks = [(line.get_marker(), line.get_fillstyle(), *line.get_xdata(), *line.get_ydata()) for line in single]
        assert marks == [
            ("x", "full", 9.0, 1.0),
            ("x", "full", 9.0, 1.0),
            ("o", "none", 2.0, 0.995),
            ("x", "full", 9.0, 1.0),
            ("o", "none", 20.0, 0.96),
        ]


@pytest.mark.parametrize(("measures", "least"), [([EXACT], 0.95), ([EXACT, HNSW], 0.95), ([HNSW, BIT], 0.8)])
def test_what_is_near_to_one_is_seen_however_bad_the_worst_is(measures, least):
    figure = recall_figure(measures)

    bottom, top = figure.axes[0].get_ylim()
    assert least - 0.02 < bottom < least
    assert 1 < top < 1.02
    assert {axes.get_ylim() for axes in figure.axes} == {(bottom, top)}


def test_a_low_target_is_seen_as_well():
    low = SizeMeasures.of(HNSW.as_json() | {"target": 0.85})

    assert recall_figure([low]).axes[0].get_ylim()[0] < 0.85


def test_times_are_written_as_people_do_and_the_legend_covers_no_panel():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = recall_figure([EXACT, HNSW, BIT])
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()

    bottom = figure.axes[-1]
    written = [label.get_text() for label in bottom.get_xticklabels(which="both") if label.get_text()]
    assert {"1", "2", "5", "10", "20"} <= set(written)
    assert all(np.isfinite(float(text)) for text in written)
    panels = [axes.get_tightbbox() for axes in figure.axes]
    assert not figure.legends[0].get_window_extent().count_overlaps(panels)
    for at, panel in enumerate(panels):
        assert not panel.count_overlaps(panels[at + 1 :])


def test_drawing_changes_nothing_of_what_is_drawn():
    before = HNSW.as_json()

    recall_figure([HNSW])

    assert HNSW.as_json() == before
