"""The canary: a question whose answer is known, asked of each size's index by itself.

``pg_index`` may call an index valid that answers wrongly, or with an error: after an upgrade of the extension that made
it, or of the system's libraries, or after damage on the disk. So it is asked for a stored vector, which must find
itself and as many others as are there.
"""

from dataclasses import dataclass

from sqlalchemy import select, text

from abo_pipeline.errors import DamagedIndexError
from abo_pipeline.store.database import transaction
from abo_pipeline.store.indexes import installed_extensions
from abo_pipeline.store.nearest import by_index, first_image, scope, stored_vector
from abo_pipeline.store.schema import SizeIndex
from abo_pipeline.store.spaces import EmbeddingSpace
from abo_pipeline.store.strategies import STRATEGIES

HITS = 10
SIMILARITY_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Answer:
    """What a size's index said.

    Attributes:
        size: MAX_IMAGES.
        index_name: None where the size is searched exactly: there is nothing that could be wrong then.
        image_id: that was asked for.
        hits, of: how many were found, and how many there are to be found.
        best: similarity of the best, if any.
        error: what Postgres said instead of answering.
        made_by, installed: extension and version at the last good answer, and now.
    """

    size: int
    index_name: str | None
    image_id: str
    hits: int
    of: int
    best: float | None
    error: str | None
    made_by: str | None
    installed: str | None

    @property
    def found(self) -> bool:
        """Whether the answer is right. A picture that is stored twice is as near to itself as its twin."""
        if self.index_name is None:
            return True
        return self.best is not None and self.best > 1 - SIMILARITY_TOLERANCE and self.hits == self.of


def ask_canary(space: EmbeddingSpace, size: int) -> Answer | None:
    """Ask a size's index; an answer that is right is remembered with the extension's version.

    Returns:
        None if nothing is embedded, so that there is nothing to ask for.
    """
    image_id = first_image(space)
    vector = None if image_id is None else stored_vector(space, image_id)
    if image_id is None or vector is None:
        return None
    within = scope(space, size)
    made_by, installed = _versions(space, size)
    hits, error = [], None
    if within.index_name:
        try:
            hits = by_index(space, vector, HITS, within)
        except DamagedIndexError as damaged:
            error = damaged.said
    embedded, _ = space.coverage(within.cutoff)
    best = hits[0].similarity if hits else None
    of = min(HITS, embedded)
    answer = Answer(size, within.index_name, image_id, len(hits), of, best, error, made_by, installed)
    if answer.found and installed != made_by:
        _remember(space, size, installed)
    return answer


def _versions(space: EmbeddingSpace, size: int) -> tuple[str | None, str | None]:
    query = select(SizeIndex.strategy, SizeIndex.extension).where(SizeIndex.space == space.name, SizeIndex.size == size)
    with transaction(space.engine) as connection:
        row = connection.execute(query).one_or_none()
        if row is None or row.strategy not in STRATEGIES:
            return None, None
        extension = STRATEGIES[row.strategy].extension
        version = installed_extensions(connection).get(extension)
        return row.extension, version and f"{extension} {version}"


def _remember(space: EmbeddingSpace, size: int, extension: str | None) -> None:
    with transaction(space.engine) as connection:
        connection.execute(
            text("UPDATE size_indexes SET extension = :extension WHERE space = :space AND size = :size"),
            {"extension": extension, "space": space.name, "size": size},
        )
