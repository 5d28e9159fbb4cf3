"""Upper and lower case: how texts are compared without regard to them, on any server."""

from weakref import WeakKeyDictionary

from sqlalchemy import Engine, text

from abo_pipeline.store.database import transaction

_COLLATIONS = ("pg_c_utf8", "und-x-icu", "C.utf8", "C.UTF-8")
"""Of Postgres 17 and newer, of one built with ICU, and of systems."""

_known: WeakKeyDictionary[Engine, str] = WeakKeyDictionary()


def letters(engine: Engine) -> str:
    """A collation that knows upper and lower case of all letters, quoted; the database's own if there is none.

    The embedded server's own, C, knows those of ASCII only.
    """
    if engine not in _known:
        _known[engine] = _ask(engine)
    return _known[engine]


def _ask(engine: Engine) -> str:
    with transaction(engine) as connection:
        known = connection.scalar(
            text(
                """
                SELECT collname FROM pg_collation
                WHERE collnamespace = CAST('pg_catalog' AS regnamespace) AND collname = ANY (CAST(:wanted AS text[]))
                      AND getdatabaseencoding() = 'UTF8'
                ORDER BY array_position(CAST(:wanted AS text[]), CAST(collname AS text)) LIMIT 1
                """
            ),
            {"wanted": list(_COLLATIONS)},
        )
    return f'"{known or "default"}"'
