r"""What is asked: queries as plain values, and how they are written.

A mix is a sum of terms:

    "red shoe" + like:71abc - 0.5*"heel"

    mix   =  [sign] term, and any number of: sign term
    sign  =  + or - (− and – are read as well)
    term  =  [weight *] and one of: "text"   like:ID   image:PATH   url:URL

A text stands in quotes (“…” are read as well); between straight ones ``\"`` is a quote and ``\\`` a backslash. An id, a
path or a URL goes as far as the next blank, or stands in quotes too. What is not written so is a text as it stands.

How a query becomes a vector is for ``query_vectors``; what comes back, for ``hits``.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from abo_pipeline.errors import QueryError, StorageError
from abo_pipeline.storage import public_url

LIKE, IMAGE, URL = "like:", "image:", "url:"

MOST_PARTS = 50
"""Of a mix. Each may be a file to decode or a URL to fetch."""

_SHOWN = 160
"""Characters of what was asked that a heading or a message repeats."""

# Every repetition is possessive (++, *+, ?+): nothing is tried twice, however long the text is.
_FACTOR = r"(?:[0-9]{1,20}+(?:\.[0-9]{0,24}+)?+|\.[0-9]{1,24}+)(?:[eE][+-]?+[0-9]{1,3}+)?+"
_SIGN = re.compile(r"([+\-−–])\s*+")
_WEIGHT = re.compile(rf"({_FACTOR})\s*+\*\s*+")
_KIND = re.compile(f"({LIKE}|{IMAGE}|{URL})")
_QUOTED = re.compile(r'"((?:[^"\\]++|\\.)*+)"\s*+', re.DOTALL)
_CURLY = re.compile(r"“([^”]*+)”\s*+")
_ESCAPED = re.compile(r'\\(["\\])')
_BARE = re.compile(r'([^\s"“]\S*+)\s*+')
_BARE_OR_NOTHING = re.compile(r'((?![“"])\S*+)\s*+')

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]++")
_OPERATOR = re.compile(r"\s[+\-−–]\s")
# As in what may have been meant for a mix.
_OPERATOR_OR_END = re.compile(r"\s[+\-−–*](?:\s|$)")
_PREFIXED = re.compile(rf"(?:^|\s)(?:{LIKE}|{IMAGE}|{URL})[\w\"“/.~]")
_START = re.compile(rf'[+\-−–]?+\s*+(?:{_FACTOR}\s*+\*\s*+)?+(?:["“]|{LIKE}|{IMAGE}|{URL})')


@dataclass(frozen=True)
class TextQuery:
    """A phrase such as "red leather office chair"."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ImageQuery:
    """A picture in a file."""

    path: Path

    @property
    def shown_path(self) -> str:
        """The path as text, which a path need not be; what is printed or stored must."""
        return str(self.path).encode("utf-8", "replace").decode()

    def __str__(self) -> str:
        return f"{IMAGE}{_value(self.shown_path)}"


@dataclass(frozen=True)
class UrlQuery:
    """A picture in the web."""

    url: str

    @property
    def shown_url(self) -> str:
        """The URL without what may be secret."""
        try:
            return public_url(self.url)
        except StorageError:
            return "…"

    @property
    def recorded_url(self) -> str:
        """The same, with a digest of what is left out, so that two pictures stay two."""
        if self.shown_url == self.url:
            return self.url
        return f"{self.shown_url}?{blake2b(self.url.encode(errors='replace'), digest_size=4).hexdigest()}"

    def __str__(self) -> str:
        return f"{URL}{_value(self.url)}"


@dataclass(frozen=True)
class LikeQuery:
    """A stored image: "more like this"."""

    image_id: str

    def __str__(self) -> str:
        return f"{LIKE}{_value(self.image_id) if self.image_id else ''}"


Term = TextQuery | ImageQuery | UrlQuery | LikeQuery


@dataclass(frozen=True)
class Part:
    """A term of a mix, and how much it counts: below 0, hits are to be unlike it.

    Raises:
        QueryError: the weight is no finite number.
    """

    weight: float
    query: Term

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise QueryError(f"The weight of {shown(self.query)} is {self.weight}; give a finite number.")


@dataclass(frozen=True)
class MixQuery:
    """Several terms at once: the sum of their unit vectors, each times its weight.

    ``parse_query`` reads its text as the same mix again.

    Raises:
        QueryError: there is no part, or there are more than ``MOST_PARTS``.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.parts) <= MOST_PARTS:
            raise QueryError(f"A mix has 1 to {MOST_PARTS} parts, not {'more' if self.parts else 'none'}.")

    def __str__(self) -> str:
        return _sum(self.parts)


Query = Term | MixQuery


def parse_query(text: str) -> Query:
    """A query as people write it: at the command line, in a setting, in Dagster's launchpad.

    Args:
        text: a mix, or a single ``like:ID``, ``image:PATH`` or ``url:URL``. Anything else is a text as it stands, its
            quotes included.

    Raises:
        QueryError: it is a mix of more than ``MOST_PARTS``.
    """
    text = text.strip()
    written = _read(text)
    if written is None:
        if text.startswith(LIKE) and not _OPERATOR.search(text):
            return LikeQuery(text.removeprefix(LIKE).strip())
        return TextQuery(text)
    (sign, weight, term), *more = written
    if not (sign or weight or more):
        return TextQuery(text) if isinstance(term, TextQuery) else term
    return MixQuery(tuple(Part(_weight(sign, weight), term) for sign, weight, term in written))


def one_query(
    text: str | None = None,
    *,
    images: Sequence[Path | str] = (),
    likes: Sequence[str] = (),
    urls: Sequence[str] = (),
    plus: Sequence[str] = (),
    minus: Sequence[str] = (),
) -> Query:
    """What is asked for by several flags or fields at once: the one query that is given, or the mix of them all.

    Args:
        text: as ``parse_query`` reads it.
        images: pictures in files.
        likes: image_ids.
        urls: pictures in the web.
        plus: more texts, read like the first.
        minus: likewise; these count negatively.

    Raises:
        QueryError: none is given, or too many are.
    """
    wanted: list[Query] = [] if text is None else [parse_query(text)]
    wanted += [ImageQuery(Path(image)) for image in images]
    wanted += map(LikeQuery, likes)
    wanted += map(UrlQuery, urls)
    wanted += map(parse_query, plus)
    unwanted = list(map(parse_query, minus))
    if not wanted and not unwanted:
        raise QueryError("Nothing is asked for. Give a text, a picture, a URL or a stored image to search by.")
    if len(wanted) == 1 and not unwanted:
        return wanted[0]
    return MixQuery(
        tuple(
            Part(sign * part.weight, part.query)
            for sign, queries in ((1, wanted), (-1, unwanted))
            for query in queries
            for part in parts_of(query)
        )
    )


def parts_of(query: Query) -> tuple[Part, ...]:
    """The parts of a mix; any other query is one part."""
    return query.parts if isinstance(query, MixQuery) else (Part(1, query),)


def kind_of(term: Term) -> str:
    """What a term is like: ``text`` or ``image``. Vectors of the two lie apart, and compare differently."""
    return "text" if isinstance(term, TextQuery) else "image"


def misread(text: str) -> str | None:
    """What to say of a text that somebody may have meant as a mix; None if it does not look like one."""
    text = text.strip()
    if not (_START.match(text) and _OPERATOR_OR_END.search(text)) and not _PREFIXED.search(text):
        return None
    if _read(text):
        return "The query was read as one text; parse_query reads it as a mix."
    return 'The query was read as one text. A mix is written like this: "red shoe" + like:ID - 0.5*"heel".'


def shown(query: Query) -> str:
    """The query for a heading or a message: short, and without what a path or a URL may give away.

    And without characters that would tell a terminal to do something.
    """
    return shortened(_CONTROLS.sub(" ", str(_with_terms(query, _public))))


def recorded(query: Query) -> str:
    """The query as it is written, for whatever is kept of it: of what may be secret in a URL there is a digest."""
    return str(_with_terms(query, lambda term: UrlQuery(term.recorded_url) if isinstance(term, UrlQuery) else term))


def shortened(text: str) -> str:
    """A text of any length as one that fits a line or two."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _with_terms(query: Query, change: Callable[[Term], Term]) -> Query:
    if not isinstance(query, MixQuery):
        return change(query)
    return MixQuery(tuple(Part(part.weight, change(part.query)) for part in query.parts))


def _public(term: Term) -> Term:
    match term:
        case ImageQuery(path):
            return ImageQuery(Path(path.name))
        case UrlQuery():
            return UrlQuery(term.shown_url)
        case _:
            return term


# --- How a mix is written ---


def _sum(parts: Sequence[Part]) -> str:
    if len(parts) == 1 and parts[0].weight == 1:
        # Without its weight it would be read as the bare term.
        return f"1*{_term(parts[0].query)}"
    text = ""
    for part in parts:
        sign = "-" if part.weight < 0 else "+"
        weight = repr(abs(float(part.weight))).removesuffix(".0")
        factor = "" if weight == "1" else f"{weight}*"
        text += (f" {sign} " if text else sign.strip("+")) + factor + _term(part.query)
    return text


def _term(term: Term) -> str:
    return _quoted(term.text) if isinstance(term, TextQuery) else str(term)


def _value(text: str) -> str:
    """An id, a path or a URL, in quotes only if it needs them."""
    return text if re.fullmatch(r'[^\s"“]\S*+', text) else _quoted(text)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# --- How a mix is read ---


def _read(text: str) -> list[tuple[str, str, Term]] | None:
    """The terms of a mix or a single term, each with its sign and its weight as written; None if it is a mere text.

    What comes after one term too many is not looked at.
    """
    reader = _Reader(text)
    terms: list[tuple[str, str, Term]] = []
    while not reader.at_end and len(terms) <= MOST_PARTS:
        sign = reader.take(_SIGN)
        if terms and not sign:
            return None
        weight = reader.take(_WEIGHT)
        term = _read_term(reader)
        if term is None or not math.isfinite(_weight(sign, weight)):
            return None
        terms.append((sign or "", weight or "", term))
    return terms or None


def _read_term(reader: "_Reader") -> Term | None:
    kind = reader.take(_KIND)
    if kind is None:
        text = _read_quoted(reader)
        return None if text is None else TextQuery(text)
    value = _read_quoted(reader)
    if value is None:
        # Without an id it is for a report, which takes the first image there is.
        value = reader.take(_BARE) if kind != LIKE else reader.take(_BARE_OR_NOTHING)
    if value is None:
        return None
    if kind == IMAGE:
        return ImageQuery(Path(value))
    return LikeQuery(value) if kind == LIKE else UrlQuery(value)


def _read_quoted(reader: "_Reader") -> str | None:
    text = reader.take(_QUOTED)
    return reader.take(_CURLY) if text is None else _ESCAPED.sub(r"\1", text)


def _weight(sign: str | None, weight: str | None) -> float:
    size = float(weight or 1)
    return -size if sign and not sign.startswith("+") else size


class _Reader:
    """A text, and how far it has been read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    @property
    def at_end(self) -> bool:
        """Whether nothing is left."""
        return self._at == len(self._text)

    def take(self, pattern: re.Pattern[str]) -> str | None:
        """What the pattern's group holds, if the pattern comes next."""
        match = pattern.match(self._text, self._at)
        if match is None:
            return None
        self._at = match.end()
        found: str = match[1]
        return found
