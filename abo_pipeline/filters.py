"""Filters: which images a search may answer with, by what is known of them and of their products.

Plain values. How the database tells a match is for ``store.filtering``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from operator import index
from typing import Any, Self

from abo_pipeline.errors import QueryError

_SIDES = ("min_width", "max_width", "min_height", "max_height")
_MOST_PIXELS = 2**31 - 1


def _values(name: str, given: str | Iterable[str]) -> tuple[str, ...]:
    """Several texts, or one.

    Raises:
        QueryError: they are no texts.
    """
    values = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if wrong := [value for value in values if not isinstance(value, str)]:
        raise QueryError(f"The filter {name} is {wrong[0]!r}; it is a text, or several of them.")
    return values


def _is_side(given: Any) -> bool:
    try:
        return 0 <= index(given) <= _MOST_PIXELS
    except TypeError:
        return False


@dataclass(frozen=True)
class Filters:
    """What an answer must satisfy; an empty filter lets everything through.

    Texts are compared without regard to case. An image passes if **one** of the products that it shows satisfies all
    conditions on products, and its own sides those on sides.

    Attributes:
        product_type, color, brand, country: any of these values; a text by itself is one value.
        keyword: any of these among the product's keywords.
        title: every word of these texts occurs in the product's title, as a word. A word is a run of letters and
            digits; a text without any asks nothing of the title.
        min_width, max_width, min_height, max_height: of the original image in pixels, inclusive.

    Raises:
        QueryError: a value that is no text, or one that Postgres cannot hold, or a side that is no number of pixels.
    """

    product_type: tuple[str, ...] = ()
    color: tuple[str, ...] = ()
    brand: tuple[str, ...] = ()
    country: tuple[str, ...] = ()
    keyword: tuple[str, ...] = ()
    title: tuple[str, ...] = ()
    min_width: int | None = None
    max_width: int | None = None
    min_height: int | None = None
    max_height: int | None = None

    def __post_init__(self) -> None:
        for name in PRODUCT_FIELDS:
            values = _values(name, getattr(self, name))
            for value in values:
                require_characters(value, f"The filter {name}")
            # A text by itself would be taken for its letters.
            object.__setattr__(self, name, values)
        for name in _SIDES:
            side = getattr(self, name)
            if side is not None and not _is_side(side):
                raise QueryError(f"The filter {name} is {side}; a side has 0 to {_MOST_PIXELS:,} pixels.")

    @classmethod
    def of(cls, **given: Any) -> Self:
        """A filter from flags or configuration, where None asks nothing."""
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def on_products(self) -> bool:
        """Whether anything is asked of a product."""
        return any(getattr(self, name) for name in PRODUCT_FIELDS)

    @property
    def on_values(self) -> bool:
        """Whether anything is asked of a product that has one of certain values, which a title has not."""
        return any(getattr(self, name) for name in PRODUCT_FIELDS if name != "title")

    @property
    def on_sides(self) -> bool:
        """Whether anything is asked of the image's sides."""
        return any(getattr(self, name) is not None for name in _SIDES)

    def __bool__(self) -> bool:
        return self.on_products or self.on_sides

    def __str__(self) -> str:
        parts = [f"{name} {' or '.join(getattr(self, name))}" for name in PRODUCT_FIELDS if getattr(self, name)]
        parts += [f"{name} {getattr(self, name)}" for name in _SIDES if getattr(self, name) is not None]
        return ", ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """What is asked, as plain values; what is not is left out."""
        asked = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asked.items()
            if value or value == 0
        }


PRODUCT_FIELDS = ("product_type", "color", "brand", "country", "keyword", "title")
"""What may be asked of a product."""

FIELDS = (*PRODUCT_FIELDS, *_SIDES)

NO_FILTER = Filters()


def require_characters(text: str, what: str) -> None:
    """Refuse what neither the model nor Postgres can take: a shell may hand over bytes that are no text.

    Raises:
        QueryError: the text holds NUL, or halves of surrogate pairs.
    """
    if "\x00" in text or text.encode(errors="ignore").decode() != text:
        raise QueryError(f"{what} holds bytes that are no text in UTF-8.")
