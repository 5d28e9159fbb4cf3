"""``abo doctor``: what the pipeline depends on, a finding each, with the remedy where one is needed.

Nothing is fetched, embedded or changed here, except that an embedded Postgres is started if it does not run. Where
Dagster hands runs to other machines, what those need to share with this one is looked at too. Torch is not imported:
what is said of it comes from what is installed.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.instance.ref import InstanceRef
from fsspec import AbstractFileSystem
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from abo_pipeline.download import local_path, require_file
from abo_pipeline.encoder import where_is
from abo_pipeline.errors import AboError, SettingsError
from abo_pipeline.machine import cores, memory_bytes
from abo_pipeline.runner import dagster_home
from abo_pipeline.search import encoder_of, searched_space
from abo_pipeline.settings import Settings
from abo_pipeline.storage import HTTP, file_system, is_local, public_url, scheme_of, translated
from abo_pipeline.store import Store, opened_store

_LITTLE_ROOM_BYTES = 2_000_000_000
_TIMEOUT = 3

# Launchers that start runs on the machine of the code server; any other one may start them anywhere.
_LAUNCHERS_HERE = ("DefaultRunLauncher", "LocalRunLauncher")


# Where the first part of a path must be there before anything can be written.
_WITH_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")


class Level(StrEnum):
    """How a thing is: well, worth a look, or in the way of a run."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One dependency: how it is, and what it is or what to do."""

    what: str
    level: Level
    words: str


Judgement = tuple[Level, str]


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; a finding that is not ok says what to do."""
    instance = _Instance(settings)
    examinations: dict[str, Callable[[], Judgement]] = {
        "python": _python,
        "machine": _machine,
        "state": lambda: _state(settings),
        "assets": lambda: _assets(settings, instance),
        "archive": lambda: _archive(settings.archive, settings, instance),
        "listings": lambda: _archive(settings.listings_source, settings, instance),
        "model": lambda: (Level.OK, where_is(settings.model)),
        "postgres": lambda: _postgres(settings, instance),
        "space": lambda: _space(settings),
        "search": lambda: _search(settings),
        "dagster": lambda: _dagster(instance),
        "launcher": lambda: _launcher(instance),
    }
    return [_finding(what, examination) for what, examination in examinations.items()]


def _finding(what: str, examination: Callable[[], Judgement]) -> Finding:
    try:
        return Finding(what, *examination())
    except AboError as error:
        return Finding(what, Level.BAD, str(error))


# --- This machine ---


def _python() -> Judgement:
    packages = ", ".join(f"{name} {version(name)}" for name in ("dagster", "sentence-transformers", "torch"))
    return Level.OK, f"{platform.python_version()}; {packages}"


def _machine() -> Judgement:
    words = f"{cores()} cores, {memory_bytes() / 1e9:,.0f} GB of memory"
    gpus = _gpus()
    if not gpus:
        return Level.OK, f"{words}, no NVIDIA GPU"
    words = f"{words}, {', '.join(gpus)}"
    if version("torch").endswith("+cpu"):
        return Level.NOTE, f"{words}, which the installed torch cannot use: install a CUDA build of it"
    return Level.OK, words


def _gpus() -> list[str]:
    """The names of the NVIDIA GPUs, from the driver's own command."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        asked = [command, "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=_TIMEOUT, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def _state(settings: Settings) -> Judgement:
    folder = settings.folder()
    free = shutil.disk_usage(folder).free
    words = f"{folder}, {free / 1e9:,.1f} GB free"
    if free < _LITTLE_ROOM_BYTES:
        return Level.NOTE, f"{words}: little for archives and vectors. Make room, or set ABO_STATE_DIR to another disk"
    return Level.OK, words


# --- What a run reads and writes ---


def _assets(settings: Settings, instance: "_Instance") -> Judgement:
    place = settings.frames
    if not is_local(place):
        shown = public_url(place)
        with translated(f"{shown} cannot be read", "Check ABO_ASSETS, and what this machine may do there."):
            system, path = file_system(place)
            if _exists(system, path):
                return Level.OK, shown
            if scheme_of(place) in _WITH_BUCKETS and not _exists(system, path.partition("/")[0]):
                return Level.BAD, f"{shown}: there is no such bucket. Create it, or set ABO_ASSETS to another place"
        return Level.OK, f"{shown}, nothing there yet"
    if settings.assets and not _is_writable(Path(place)):
        raise SettingsError(f"{place} cannot be written to. Set ABO_ASSETS to a folder that can, or to an s3:// URL.")
    if not instance.is_for_several_machines:
        return Level.OK, place
    where = "a folder" if settings.assets else "in the state folder"
    return Level.NOTE, (
        f"{place}, {where}: every machine must reach the same one. Mount it at this path on each, or set ABO_ASSETS to "
        "an object store such as s3://bucket/abo"
    )


def _exists(system: AbstractFileSystem, path: str) -> bool:
    """Whether something is there; fsspec's own function for it says no whatever goes wrong."""
    try:
        system.info(path)
    except FileNotFoundError:
        return False
    return True


def _is_writable(folder: Path) -> bool:
    """Whether a folder that may not be there yet can be written to."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


def _archive(source: str | None, settings: Settings, instance: "_Instance") -> Judgement:
    if source is None:
        return Level.OK, "none"
    path = local_path(source, settings.folder("archives"))
    if not is_local(source) and not path.exists():
        if scheme_of(source) not in HTTP:
            # The package for it may be missing, which is better known now.
            file_system(source)
        return Level.OK, f"not here yet; `abo run` fetches it to {path}"
    words = f"{path}, {require_file(path).st_size / 1e6:,.1f} MB"
    if is_local(source) and instance.is_for_several_machines:
        return (
            Level.NOTE,
            f"{words}: it must be at this path on each machine. With a URL each fetches a copy of its own",
        )
    return Level.OK, words


def _postgres(settings: Settings, instance: "_Instance") -> Judgement:
    with opened_store(settings) as store:
        server, pgvector = store.versions()
        words = f"{server} with pgvector {pgvector}, {_vectorscale(store)}"
    if settings.database_url:
        return Level.OK, f"{words}, named by ABO_DATABASE_URL"
    if instance.is_for_several_machines:
        return Level.BAD, (
            f"{words}, embedded in this machine's state folder, where {instance.launcher}'s workers on other machines "
            "cannot reach it. Set ABO_DATABASE_URL to one server for all"
        )
    return Level.OK, f"{words}, embedded ({settings.embedded}), in the state folder"


def _vectorscale(store: Store) -> str:
    if version := store.vectorscale():
        return f"pgvectorscale {version}"
    if version := store.offered_vectorscale():
        return f"pgvectorscale {version} (once an index needs it)"
    return "no pgvectorscale (not needed)"


def _space(settings: Settings) -> Judgement:
    with opened_store(settings) as store:
        (account,) = store.accounts(settings.space_name, [0])
    if not account.kept:
        return Level.OK, f"{settings.space_name}: nothing yet; `abo run` or `abo demo` makes it"
    words = f"{settings.space_name}: kept {account.kept:,} = embedded {account.embedded:,} + failed {account.failed:,}"
    return Level.OK, f"{words} + pending {account.pending:,}"


def _search(settings: Settings) -> Judgement:
    with opened_store(settings) as store:
        name = searched_space(store, settings)
        space = store.find_space(name)
        if space is None:
            return Level.OK, f"{name}, as soon as something is embedded into it"
        space.require_encoder(encoder_of(space, settings))
        by_default = name == store.default_space()
    words = f"{name}, made with {space.model}"
    return Level.OK, words if by_default else f"{words}, named by ABO_SPACE"


# --- Dagster ---


@dataclass
class _Instance:
    """Dagster's instance as its dagster.yaml describes it; nothing of it is opened or made."""

    settings: Settings

    @cached_property
    def home(self) -> Path:
        return dagster_home(self.settings)

    @cached_property
    def described(self) -> InstanceRef:
        if not (self.home.is_absolute() and self.home.is_dir()):
            raise SettingsError(f"DAGSTER_HOME is {self.home}: give it the absolute path of a folder that is there.")
        try:
            return InstanceRef.from_dir(str(self.home))
        except dg.DagsterError as error:
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise SettingsError(f"{self.home / 'dagster.yaml'} cannot be used: {line}") from None

    @property
    def launcher(self) -> str:
        data = self.described.run_launcher_data
        return data.class_name if data else _LAUNCHERS_HERE[0]

    @property
    def is_for_several_machines(self) -> bool:
        try:
            return self.launcher not in _LAUNCHERS_HERE
        except SettingsError:
            # Said once, of Dagster itself.
            return False


def _dagster(instance: _Instance) -> Judgement:
    named = "DAGSTER_HOME" if os.environ.get("DAGSTER_HOME") else "in the state folder"
    words = f"{instance.home} ({named}), its records in"
    storage = instance.described.run_storage_data
    kind = storage.class_name if storage else "SqliteRunStorage"
    if storage and "Postgres" in kind:
        return Level.OK, f"{words} Postgres at {_storage_server(storage.config_dict)}"
    if "Sqlite" not in kind:
        return Level.OK, f"{words} {kind}"
    if instance.is_for_several_machines:
        return Level.BAD, (
            f"{words} SQLite, which only this machine can read, while {instance.launcher} hands runs to others. "
            "Give dagster.yaml a storage in Postgres, as in deploy/dagster-celery.yaml"
        )
    if not (instance.home / "dagster.yaml").is_file():
        return Level.NOTE, (
            f"{words} SQLite; there is no dagster.yaml in it, so every run that is asked for starts at once, each with "
            "a model of its own. Copy the project's dagster.yaml there"
        )
    return Level.OK, f"{words} SQLite"


def _storage_server(config: Mapping[str, Any]) -> str:
    """The server of Dagster's own storage, which is tried; without its password."""
    try:
        from dagster_postgres.utils import pg_url_from_config
    except ImportError:
        raise _missing("server") from None
    try:
        url = make_url(pg_url_from_config(_from_environment(config)))
    except (SQLAlchemyError, dg.DagsterInvariantViolationError, ValueError):
        raise SettingsError("The address of Dagster's storage in dagster.yaml is no database URL.") from None
    if url.get_driver_name() != "psycopg2":
        raise SettingsError(
            "Dagster's storage needs the driver psycopg2, and its address in dagster.yaml does not name it. Write it "
            "like postgresql+psycopg2://USER:PASSWORD@HOST:5432/DATABASE."
        )
    shown = url.difference_update_query(["password"]).render_as_string(hide_password=True)
    engine = create_engine(url, connect_args={"connect_timeout": _TIMEOUT})
    try:
        engine.connect().close()
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        raise SettingsError(f"Dagster's storage at {shown} does not answer: {reason}. Check that it runs.") from None
    finally:
        engine.dispose()
    return shown


def _launcher(instance: _Instance) -> Judgement:
    if not instance.is_for_several_machines:
        return Level.OK, f"{instance.launcher}: runs are processes on this machine"
    if "Celery" not in instance.launcher:
        return Level.OK, f"{instance.launcher}: runs may be on other machines"
    data = instance.described.run_launcher_data
    broker = str(_from_environment(data.config_dict if data else {}).get("broker", ""))
    workers = _workers(broker)
    words = f"{instance.launcher}: runs go through {public_url(broker)}"
    if not workers:
        return Level.NOTE, f"{words}, where no worker answers now: start one on each machine"
    return Level.OK, f"{words} to {', '.join(workers)}"


def _workers(broker: str) -> list[str]:
    """The Celery workers that answer.

    Raises:
        SettingsError: the broker does not answer, or is none.
    """
    try:
        from dagster_celery.make_app import make_app
        from kombu.exceptions import KombuError
    except ImportError:
        raise _missing("celery") from None
    from abo_pipeline.celery_launcher import celery_settings

    app = make_app(celery_settings(os.environ, broker))  # type: ignore[no-untyped-call]
    try:
        with app.connection_for_read(connect_timeout=_TIMEOUT) as connection:
            connection.ensure_connection(max_retries=1, timeout=_TIMEOUT)
        answers = app.control.ping(timeout=1)
    except (OSError, KombuError) as error:
        raise SettingsError(
            f"The broker at {public_url(broker)} does not answer ({type(error).__name__}). Check that it runs, and "
            "ABO_CELERY_BROKER."
        ) from None
    return sorted(name for answer in answers for name in answer)


def _missing(extra: str) -> SettingsError:
    return SettingsError(
        f"dagster.yaml asks for packages that are not installed: run pip install 'abo-pipeline[{extra}]'."
    )


def _from_environment(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of dagster.yaml with its ``env:`` entries filled in.

    Raises:
        SettingsError: a variable is not set.
    """
    return {name: _filled_in(value) for name, value in config.items()}


def _filled_in(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if set(value) != {"env"}:
        return _from_environment(value)
    variable = str(value["env"])
    if variable not in os.environ:
        raise SettingsError(f"{variable} is not set, which Dagster's dagster.yaml takes a value from.")
    return os.environ[variable]
