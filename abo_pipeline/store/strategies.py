"""Index strategies: the ways to find near vectors without comparing with all of them.

Each says how its index is made, how a query must be written for Postgres to use it, and what its effort is: the one
knob that buys recall with time. Whatever an index says is ordered again by the full vectors. Choosing an effort is for
``evaluation``; building is for ``indexes``; searching for ``nearest``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

EXACT = "exact"
HNSW = "hnsw"
DISKANN = "diskann"

HNSW_M = 24
HNSW_EF_CONSTRUCTION = 128
"""With half precision and exact re-ranking, the best of what was measured at 100,000 rows."""

MAX_EF_SEARCH = 1000
"""pgvector's limit."""

_MAX_SCAN_TUPLES = 20_000
"""pgvector's own default: rows that an iterative scan looks at before it gives up."""


@dataclass(frozen=True)
class Strategy:
    """One kind of vector index.

    Attributes:
        name: as a person chooses it.
        method: Postgres's access method.
        extension: the extension that brings it.
        words: what it is.
        default_effort: where nothing has been measured.
    """

    name: str
    method: str
    extension: str
    words: str
    default_effort: int
    _expression: str
    _operator_class: str
    _operator: str
    _query: str
    _parameters: Callable[[int], dict[str, int]]
    _ladder: Callable[[int], tuple[int, ...]]
    _settings: Callable[[int, int], dict[str, str]]
    _candidates: Callable[[int, int], int]

    def definition(self, rows: int, dimension: int) -> str:
        """What comes after ``CREATE INDEX … ON table``, for so many rows; without the WHERE of a partial index."""
        expression = self._expression.format(dimension=dimension)
        options = ", ".join(f"{name} = {value}" for name, value in self._parameters(rows).items())
        return f"USING {self.method} ({expression} {self._operator_class})" + (f" WITH ({options})" if options else "")

    def ordering(self, dimension: int) -> str:
        """The ORDER BY that uses the index: nothing but the index's own expression and operator does."""
        expression, query = (part.format(dimension=dimension) for part in (self._expression, self._query))
        return f"{expression} {self._operator} {query}"

    def reach(self, dimension: int) -> str:
        """How far the index takes a row to be, as far as Postgres can tell; one number for all where it cannot."""
        # It goes by bits that only the index has.
        return "0" if self.name == DISKANN else self.ordering(dimension)

    def efforts(self, rows: int) -> tuple[int, ...]:
        """Efforts worth trying, ascending, for an index over so many rows."""
        return self._ladder(rows)

    def candidates(self, k: int, effort: int) -> int:
        """How many rows to take from the index, to be ordered again by their full vectors."""
        return self._candidates(k, effort)

    def settings(self, k: int, effort: int, visited: int) -> Mapping[str, str]:
        """Postgres's settings for a search.

        Args:
            k: hits wanted.
            effort: as tuned.
            visited: rows that the scan may have to look at, which with a filter are more than it gives.
        """
        found = self._settings(effort, self.candidates(k, effort))
        if self.method == "hnsw":
            # Goes on when a filter has eaten candidates, instead of returning fewer. Rows may come out of order then,
            # and are put in order afterwards.
            found |= {
                "hnsw.iterative_scan": "relaxed_order",
                "hnsw.max_scan_tuples": str(max(visited, _MAX_SCAN_TUPLES)),
            }
        return found


def _reranked(k: int, effort: int) -> int:
    """Half precision confuses neighbours at the edge of the k; these are enough more to mend that."""
    del effort
    return k + max(20, k // 2)


def _hnsw_parameters(rows: int) -> dict[str, int]:
    del rows
    return {"m": HNSW_M, "ef_construction": HNSW_EF_CONSTRUCTION}


def _hnsw_ladder(rows: int) -> tuple[int, ...]:
    del rows
    return (40, 80, 120, 200, 300, 400, 600, 800, MAX_EF_SEARCH)


def _hnsw_settings(effort: int, candidates: int) -> dict[str, str]:
    return {"hnsw.ef_search": str(min(max(effort, candidates), MAX_EF_SEARCH))}


def _lists(rows: int) -> int:
    """As pgvector's documentation advises: a thousandth of the rows, and their root above a million.

    As a power of two, so that a table that grows gets a new index when it has doubled, and not with every row.
    """
    advised = max(1.0, rows / 1000 if rows <= 1_000_000 else math.sqrt(rows))
    return 1 << round(math.log2(advised))


def _probes(rows: int) -> tuple[int, ...]:
    lists = _lists(rows)
    return (*(2**power for power in range(lists.bit_length()) if 2**power < lists), lists)


def _reranks(rows: int) -> tuple[int, ...]:
    """A bit or two a dimension say little: the effort is how many rows are re-ranked."""
    return tuple(effort for effort in (100, 200, 400, 800, 1600, 3200, 6400, 12_800) if effort < 2 * max(rows, 100))


def _many_reranked(k: int, effort: int) -> int:
    return max(effort, _reranked(k, effort))


_STRATEGIES = (
    Strategy(
        name=HNSW,
        method="hnsw",
        extension="vector",
        words="HNSW over half precision, re-ranked exactly",
        default_effort=200,
        _expression="CAST(embedding AS halfvec({dimension}))",
        _operator_class="halfvec_cosine_ops",
        _operator="<=>",
        _query="CAST(CAST(:query AS vector) AS halfvec({dimension}))",
        _parameters=_hnsw_parameters,
        _ladder=_hnsw_ladder,
        _settings=_hnsw_settings,
        _candidates=_reranked,
    ),
    Strategy(
        name="hnsw_float",
        method="hnsw",
        extension="vector",
        words="HNSW over full precision",
        default_effort=200,
        _expression="embedding",
        _operator_class="vector_cosine_ops",
        _operator="<=>",
        _query="CAST(:query AS vector)",
        _parameters=_hnsw_parameters,
        _ladder=_hnsw_ladder,
        _settings=_hnsw_settings,
        _candidates=_reranked,
    ),
    Strategy(
        name="ivfflat",
        method="ivfflat",
        extension="vector",
        words="inverted lists over full precision",
        default_effort=16,
        _expression="embedding",
        _operator_class="vector_cosine_ops",
        _operator="<=>",
        _query="CAST(:query AS vector)",
        _parameters=lambda rows: {"lists": _lists(rows)},
        _ladder=_probes,
        _settings=lambda probes, _: {"ivfflat.probes": str(probes), "ivfflat.iterative_scan": "relaxed_order"},
        _candidates=_reranked,
    ),
    Strategy(
        name="bit",
        method="hnsw",
        extension="vector",
        words="HNSW over one bit a dimension, re-ranked exactly",
        default_effort=800,
        _expression="CAST(binary_quantize(embedding) AS bit({dimension}))",
        _operator_class="bit_hamming_ops",
        _operator="<~>",
        _query="CAST(binary_quantize(CAST(:query AS vector)) AS bit({dimension}))",
        _parameters=_hnsw_parameters,
        _ladder=_reranks,
        _settings=_hnsw_settings,
        _candidates=_many_reranked,
    ),
    Strategy(
        name=DISKANN,
        method="diskann",
        extension="vectorscale",
        words="StreamingDiskANN over two bits a dimension, re-ranked exactly",
        default_effort=800,
        _expression="embedding",
        _operator_class="vector_cosine_ops",
        _operator="<=>",
        _query="CAST(:query AS vector)",
        _parameters=lambda _: {"num_neighbors": 50, "search_list_size": 100},
        _ladder=_reranks,
        # Its own re-scoring ends at 1,000 rows and costs what ours does; a longer search list brought nothing.
        _settings=lambda _, __: {"diskann.query_rescore": "0", "diskann.query_search_list_size": "100"},
        _candidates=_many_reranked,
    ),
)

STRATEGIES: Mapping[str, Strategy] = {strategy.name: strategy for strategy in _STRATEGIES}
"""By name; ``exact`` is none of them, for it needs no index."""

NAMES = (EXACT, *STRATEGIES)

PROJECTED = Strategy(
    name="pca",
    method="hnsw",
    extension="vector",
    words="HNSW over principal components, re-ranked exactly by the full vectors",
    default_effort=200,
    _expression="embedding",
    # Distances are what principal components keep. By angles, texts lose more: of their ten nearest among real
    # photographs, 100 candidates held 99.9 % by distance and 98.6 % by angle, at 48 of 128 dimensions.
    _operator_class="halfvec_l2_ops",
    _operator="<->",
    _query="CAST(CAST(:query AS vector) AS halfvec({dimension}))",
    _parameters=_hnsw_parameters,
    _ladder=_reranks,
    _settings=_hnsw_settings,
    _candidates=_many_reranked,
)
"""For tables that hold projected vectors as half precision, as the storage ladder's do; no size is indexed so."""

METHODS = tuple(sorted({strategy.method for strategy in _STRATEGIES}))
"""Access methods of vector indexes: what of a table's indexes is ours to drop."""


def membership(cutoff: int) -> str:
    """The WHERE of a size's partial index, and of a query that is to be answered by it.

    The cutoff is a literal: as a parameter it would be lost to the planner once the statement has a generic plan, and
    the partial index with it. Its second half, which holds for every key, is what tells sizes apart: by the first
    alone a larger size's index would do as well, and the planner takes it where it thinks that cheaper, as of two
    ``ivfflat`` with other numbers of lists.
    """
    return f"sample_key <= {cutoff} AND sample_key <> -1 - {cutoff}"
