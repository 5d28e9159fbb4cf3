"""``abo doctor``: what the pipeline depends on, a finding each, with the remedy where one is needed.

Nothing is fetched, embedded or changed here, except that an embedded Postgres is started if it does not run.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from abo_pipeline.download import local_path, require_file
from abo_pipeline.encoder import where_is
from abo_pipeline.errors import AboError
from abo_pipeline.settings import Settings
from abo_pipeline.store import opened_store


@dataclass(frozen=True)
class Finding:
    """One dependency: whether it is well, and what it is or what to do."""

    what: str
    ok: bool
    words: str


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; a finding that is not ok says what to do."""
    examinations: tuple[tuple[str, Callable[[Settings], str]], ...] = (
        ("python", _python),
        ("state", lambda settings: str(settings.folder())),
        ("archive", lambda settings: _archive(settings.archive, settings)),
        ("listings", lambda settings: _archive(settings.listings_source, settings)),
        ("model", lambda settings: where_is(settings.model)),
        ("postgres", _postgres),
        ("space", _space),
    )
    return [_finding(what, examination, settings) for what, examination in examinations]


def _finding(what: str, examination: Callable[[Settings], str], settings: Settings) -> Finding:
    try:
        return Finding(what, ok=True, words=examination(settings))
    except AboError as error:
        return Finding(what, ok=False, words=str(error))


def _python(settings: Settings) -> str:
    del settings
    packages = ", ".join(f"{name} {version(name)}" for name in ("dagster", "sentence-transformers", "torch"))
    return f"{platform.python_version()}; {packages}"


def _archive(source: str | None, settings: Settings) -> str:
    if source is None:
        return "none"
    path = local_path(source, settings.folder("archives"))
    if "://" in source and not path.exists():
        return f"not here yet; `abo run` fetches it to {path}"
    return f"{path}, {require_file(path).st_size / 1e6:,.1f} MB"


def _postgres(settings: Settings) -> str:
    with opened_store(settings) as store:
        server, pgvector = store.versions()
    where = "named by ABO_DATABASE_URL" if settings.database_url else "embedded, in the state folder"
    return f"{server} with pgvector {pgvector}, {where}"


def _space(settings: Settings) -> str:
    with opened_store(settings) as store:
        (account,) = store.accounts(settings.space_name, [0])
    if not account.kept:
        return f"{settings.space_name}: nothing yet; `abo run` or `abo demo` makes it"
    words = f"{settings.space_name}: kept {account.kept:,} = embedded {account.embedded:,} + failed {account.failed:,}"
    return f"{words} + pending {account.pending:,}"
