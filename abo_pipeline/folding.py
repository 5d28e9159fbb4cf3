"""Results as products: several pictures of one thing become one result, and the best of them stands for it.

Candidates come as a stream, the most similar first, and are read no further than the groups that are asked for need.
Where they come from, what else is known of them and how a group is shown is for others: nothing here knows of
databases, queries or files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from operator import itemgetter
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from abo_pipeline.errors import QueryError

MOST_CANDIDATES = 10_000
"""How many candidates are looked at, at most: a rule that folds everything would read the whole catalogue."""

NEAR = 0.98
"""The cosine from which on two pictures count as nearly identical."""

_ROUNDING = 1e-6
"""The cosine of a vector with itself may come out a hair below 1, and so may that of a vector embedded twice."""

_ROUGH = 1e-3
"""More than products in single precision are ever off."""

_BLOCK = 256
"""Candidates whose cosines are one matrix product."""

T = TypeVar("T")
Vector = NDArray[np.float32]


class Reason(StrEnum):
    """Why a candidate joined a group. The first of these that holds is the one that is counted."""

    PRODUCT = "product"
    IDENTICAL = "identical"
    NEAR = "near"


@dataclass(frozen=True)
class FoldRules:
    """What makes two pictures one result; any of these is enough.

    Attributes:
        product: both show the same product, by its item_id.
        identical: their files are the same, byte by byte.
        near: their vectors' cosine is at least this, above 0 and up to 1; None to leave it at that.

    Raises:
        QueryError: ``near`` is no such cosine.
    """

    product: bool = True
    identical: bool = True
    near: float | None = NEAR

    def __post_init__(self) -> None:
        if self.near is not None and not 0 < self.near <= 1:
            raise QueryError(
                f"Pictures are folded from a cosine of {self.near} on; give one above 0 and up to 1, such as {NEAR}."
            )


@dataclass(frozen=True)
class Candidate(Generic[T]):
    """A hit that may become a result or be folded into one.

    Attributes:
        item_id: of the product that describes it; None if none does. Two without one are not of the same product.
        digest: of its file.
        vector: (dimension,), of any length but 0; None where it is not known, and then nothing is nearly identical.
        payload: what the caller wants to have back.
    """

    image_id: str
    item_id: str | None
    digest: str
    vector: Vector | None = field(compare=False, repr=False)
    payload: T


@dataclass(frozen=True)
class Group(Generic[T]):
    """One result.

    Attributes:
        best: the first candidate of the group, which all others were compared with.
        folded: image_ids of the others, most similar to the query first, as far as was looked.
        reasons: how many of them were folded why; a reason that none has is left out.
    """

    best: Candidate[T]
    folded: tuple[str, ...]
    reasons: Mapping[Reason, int]


class End(StrEnum):
    """Why a page ends where it does."""

    MORE = "more"
    """It has as many groups as were asked for, and another one follows."""
    ALL = "all"
    """There are no more candidates."""
    BOUND = "bound"
    """As many candidates were looked at as may be: there may be more groups, and more to fold into these."""


@dataclass(frozen=True)
class FoldedPage(Generic[T]):
    """Some groups that follow one another, and how far was looked for them.

    Every candidate that was looked at is the best of a group, folded into one, or in ``earlier``.

    Attributes:
        groups: in the order of their best.
        earlier: image_ids that were folded into groups of pages before this one.
        looked_at: how many candidates this page took.
        end: why it ends here.
    """

    groups: tuple[Group[T], ...]
    earlier: tuple[str, ...]
    looked_at: int
    end: End


def fold(
    stream: Iterable[Sequence[Candidate[T]]],
    rules: FoldRules,
    k: int,
    *,
    skip: int = 0,
    most: int = MOST_CANDIDATES,
) -> FoldedPage[T]:
    """The k groups after the first so many, or all there are: one page of what ``Folding`` gives.

    Takes what ``Folding`` takes; k is at least 1. The same stream gives the same groups for any division into pages.
    """
    folding = Folding(stream, rules, most=most)
    if skip:
        folding.take(skip)
    return folding.take(k)


class Folding(Generic[T]):
    """Folds a stream of candidates, a page at a time.

        folding = Folding(stream, FoldRules())
        first, second = folding.take(10), folding.take(10)

    A candidate joins the first group whose best it matches, or else begins a group of its own. It is compared with the
    best of each group only, so a group never drifts away from what it shows.

    A page ends before the candidate that would begin one group too many; all before that one have been looked at. So
    what a group counts is what was folded up to there, whatever the sizes of the chunks. What comes later is seen by a
    later page, and is counted in its ``earlier``.

    Args:
        stream: chunks of candidates, the most similar first and ties by image_id, no image twice. The next chunk is
            pulled when the one before is used up and more is needed.
        rules: what makes two pictures one result.
        most: how many candidates to look at, over all pages; at least 1.
    """

    def __init__(
        self, stream: Iterable[Sequence[Candidate[T]]], rules: FoldRules, *, most: int = MOST_CANDIDATES
    ) -> None:
        self._placements = _place(stream, rules)
        self._ahead: _Placed[T] | None = None
        self._groups = 0
        self._left = most

    def take(self, k: int) -> FoldedPage[T]:
        """The next k groups, or all there are.

        Args:
            k: at least 1.
        """
        first, left = self._groups, self._left
        groups: list[_Growing[T]] = []
        earlier: list[str] = []
        end = End.BOUND
        while self._left:
            placed = self._look_ahead()
            if placed is None:
                end = End.ALL
                break
            if placed.reason is None and len(groups) == k:
                end = End.MORE
                break
            self._ahead = None
            self._left -= 1
            if placed.reason is None:
                groups.append(_Growing(placed.candidate))
            elif placed.group < first:
                earlier.append(placed.candidate.image_id)
            else:
                groups[placed.group - first].add(placed.candidate.image_id, placed.reason)
        self._groups += len(groups)
        return FoldedPage(tuple(group.grown() for group in groups), tuple(earlier), left - self._left, end)

    def _look_ahead(self) -> _Placed[T] | None:
        """Where the next candidate belongs; it stays the next one."""
        if self._ahead is None:
            self._ahead = next(self._placements, None)
        return self._ahead


@dataclass(frozen=True)
class _Placed(Generic[T]):
    """A candidate, the number of its group, and why it joined that; None if it began it."""

    candidate: Candidate[T]
    group: int
    reason: Reason | None


@dataclass
class _Growing(Generic[T]):
    best: Candidate[T]
    folded: list[str] = field(default_factory=list)
    reasons: Counter[Reason] = field(default_factory=Counter)

    def add(self, image_id: str, reason: Reason) -> None:
        self.folded.append(image_id)
        self.reasons[reason] += 1

    def grown(self) -> Group[T]:
        return Group(self.best, tuple(self.folded), {why: self.reasons[why] for why in Reason if why in self.reasons})


def _place(stream: Iterable[Sequence[Candidate[T]]], rules: FoldRules) -> Iterator[_Placed[T]]:
    bests = _Bests(rules)
    for chunk in stream:
        for start in range(0, len(chunk), _BLOCK):
            yield from bests.place(chunk[start : start + _BLOCK])


class _Bests:
    """What is known of the best of each group, by the group's number."""

    def __init__(self, rules: FoldRules) -> None:
        self._rules = rules
        self._count = 0
        self._of_item: dict[str | None, int] = {}
        self._of_digest: dict[str, int] = {}
        self._looks = None if rules.near is None else _Looks(rules.near)

    def place(self, block: Sequence[Candidate[T]]) -> Iterator[_Placed[T]]:
        """Each candidate with its place, as it is asked for."""
        compared: Iterable[_Look | None]
        compared = [None] * len(block) if self._looks is None else self._looks.compare(block)
        for candidate, look in zip(block, compared, strict=True):
            matches = self._matches(candidate, look)
            group, reason = min(matches, key=itemgetter(0), default=(self._count, None))
            if reason is None:
                self._begin(candidate, look)
            yield _Placed(candidate, group, reason)

    def _matches(self, candidate: Candidate[T], look: _Look | None) -> Iterator[tuple[int, Reason | None]]:
        """The first group for each reason there is, in the order in which reasons count."""
        if self._rules.product and candidate.item_id in self._of_item:
            yield self._of_item[candidate.item_id], Reason.PRODUCT
        if self._rules.identical and candidate.digest in self._of_digest:
            yield self._of_digest[candidate.digest], Reason.IDENTICAL
        if self._looks and look and (near := self._looks.first_near(look)) is not None:
            yield near, Reason.NEAR

    def _begin(self, candidate: Candidate[T], look: _Look | None) -> None:
        if candidate.item_id is not None:
            self._of_item[candidate.item_id] = self._count
        self._of_digest[candidate.digest] = self._count
        if self._looks and look:
            self._looks.add(look)
        self._count += 1


@dataclass(frozen=True)
class _Look:
    """A candidate's vector as given, the same of length 1 or all zeros, and its rough cosines with the first groups."""

    vector: Vector | None
    unit: Vector
    rough: Vector


class _Looks:
    """What the best of each group looks like."""

    def __init__(self, near: float) -> None:
        self._near = near
        self._vectors: list[Vector | None] = []
        self._units = np.zeros((0, 0), np.float32)

    def compare(self, block: Sequence[Candidate[T]]) -> list[_Look]:
        """Each candidate of a block beside the groups that there are now, in one product."""
        vectors = [candidate.vector for candidate in block]
        units = np.zeros((len(block), self._width(vectors)), np.float32)
        for row, vector in zip(units, vectors, strict=True):
            if vector is not None and (length := np.linalg.norm(vector)):
                row[:] = vector / length
        rough = units @ self._units[: len(self._vectors)].T
        return [_Look(*look) for look in zip(vectors, units, rough, strict=True)]

    def first_near(self, look: _Look) -> int | None:
        """The first group that a candidate is nearly identical with, those begun since it was compared included."""
        since = self._units[len(look.rough) : len(self._vectors)] @ look.unit
        perhaps = np.flatnonzero(np.concatenate([look.rough, since]) >= self._near - _ROUGH)
        return next((int(group) for group in perhaps if self._is_near(look.vector, self._vectors[group])), None)

    def add(self, look: _Look) -> None:
        """Take the best of a new group."""
        if len(self._vectors) == len(self._units):
            self._make_room(2 * len(self._units) or _BLOCK, len(look.unit))
        self._units[len(self._vectors)] = look.unit
        self._vectors.append(look.vector)

    def _width(self, vectors: Sequence[Vector | None]) -> int:
        """How long vectors are; 0 until the first one comes."""
        known = self._units.shape[1]
        width = known or next((len(vector) for vector in vectors if vector is not None), 0)
        if width != known:
            self._make_room(len(self._units), width)
        return width

    def _make_room(self, rows: int, width: int) -> None:
        larger = np.zeros((rows, width), np.float32)
        larger[: len(self._units), : self._units.shape[1]] = self._units
        self._units = larger

    def _is_near(self, one: Vector | None, other: Vector | None) -> bool:
        """In double precision: a product of matrices rounds equal rows differently by where they stand."""
        if one is None or other is None:
            return False
        a, b = one.astype(np.float64), other.astype(np.float64)
        lengths = np.sqrt(a @ a) * np.sqrt(b @ b)
        return bool(lengths and a @ b / lengths >= self._near - _ROUNDING)
