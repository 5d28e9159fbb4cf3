"""The command line: ``abo demo``, ``run``, ``plan``, ``failures``, ``retry-failures``, ``search`` and the others below.

Reads flags, calls one function of the package, and prints what came of it. An error is one sentence and exit code 2;
``--debug`` shows where it came from.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from abo_pipeline.errors import AboError, QueryError, SettingsError
from abo_pipeline.settings import PROJECT_ROOT, IndexStrategy, Settings

if TYPE_CHECKING:
    from abo_pipeline.hits import Hits
    from abo_pipeline.queries import Query
    from abo_pipeline.report import Coverage
    from abo_pipeline.sample import Sample
    from abo_pipeline.search import ExplainedHits
    from abo_pipeline.store import SpaceSummary
    from abo_pipeline.store.analytics import Count, Facets

# Dagster, polars and the rest are imported by the commands that use them: `abo --help` and an error in a flag come at
# once.

DEMO_CATALOGUE = "demo"
DEMO_SIZES = "100,300,1000"
DEMO_PARTITIONS = 16
DEMO_EXACT_BELOW = 200
"""Less than is sensible, so that two of the demo's sizes show what an index does."""
DEMO_SEARCHES = ("red leather office chair", "a pair of brown boots")
DEMO_QUERIES = (
    "red leather office chair",
    "a pair of brown boots",
    "blue mug",
    "a yellow umbrella",
    "purple suitcase",
    "a green backpack",
    "white wall clock",
    "grey couch",
    "striped shirt",
    "like:",
)

_NUMBERS = ("images", "vectors", "failed", "pending", "MB")
"""Columns of tables that are aligned to the right, and stay whole where a terminal is narrow."""

_GRID_TYPES = (".png", ".jpg", ".svg", ".pdf")

_F = TypeVar("_F", bound=Callable[..., Any])

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class _Command(click.Command):
    """A command that takes ``--debug`` wherever it is written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                help="Show where an error came from.",
            )
        )


class _Group(click.Group):
    command_class = _Command
    group_class = type


class _CommandGroup(_Command, _Group):
    """A group that does something itself if it is given no command."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, invoke_without_command=True, **kwargs)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="abo-pipeline")
def cli() -> None:
    """Search a product-photo archive by meaning.

    Settings come from flags, then from variables ABO_… (see the README). The commands that follow a run take over what
    the last run was given.
    """


@cli.command()
def demo() -> None:
    """Draw a sample archive and run the whole pipeline on it, with the small bundled model."""
    from abo_pipeline.encoder import SMALL_MODEL

    sample = _sample(Settings.read().folder("sample"))
    settings = Settings.read(
        archive=str(sample.archive),
        listings=str(sample.listings),
        model=SMALL_MODEL,
        catalogue=DEMO_CATALOGUE,
        sizes=DEMO_SIZES,
        partitions=DEMO_PARTITIONS,
        queries=DEMO_QUERIES,
        exact_below=DEMO_EXACT_BELOW,
    )
    _run(settings)
    for text in DEMO_SEARCHES:
        out.print()
        _print_found(_search(settings, text, k=10))
    out.print(
        "\nNext:\n"
        "  make dev                              the pipeline in Dagster's UI\n"
        '  abo search "a pair of red shoes"      any text; --help for pictures and more\n'
        "  abo run --archive IMAGES.tar          an archive of your own, or the official one without --archive"
    )


@cli.command()
@click.option("--archive", metavar="TAR", help="Images: a path, or a URL. Default: the official archive.")
@click.option(
    "--listings",
    metavar="TAR",
    help="Product listings, or 'none'. Default: the official ones with the official images.",
)
@click.option(
    "--model",
    metavar="NAME|FOLDER",
    help="What SentenceTransformer takes, or small-clip. Default: clip-ViT-B-32.",
)
@click.option("--space", metavar="NAME", help="Name of the embedding space. Default: from the model's name.")
@click.option("--sizes", metavar="N,N,N", help="MAX_IMAGES configurations. Default: 1000,10000,100000.")
@click.option("--min-side", metavar="PIXELS", help="Least width and height of an original. Default: 1000.")
@click.option("--partitions", metavar="N", help="Ranges that are embedded by one run each. Default: 64.")
@click.option(
    "--precision",
    metavar="NAME",
    help="Of the computation: float32, bfloat16, float16, int8. Default: the quickest that finds the same neighbours.",
)
@click.option("--batch-size", metavar="N", help="Images of a forward pass. Default: what the device is quickest with.")
@click.option("--catalogue", metavar="NAME", help="Keeps archives apart in one database. Default: abo.")
@click.option("--allow-removal", is_flag=True, help="Let many images leave the catalogue, and their vectors with them.")
@click.option("--retry-failures", is_flag=True, help="Try images again that failed before.")
@click.option("--again", is_flag=True, help="What is not said here is as in the last run, instead of the default.")
@click.option("--until", metavar="ASSET", help="Stop after this asset; image_paths is all that `abo plan` needs.")
def run(retry_failures: bool, again: bool, allow_removal: bool, until: str | None, **options: str | None) -> None:
    """Run the whole pipeline: fetch, filter, embed, index, report. What is done already is not done again.

    Without flags and variables it is the official archive; with --again, or --retry-failures alone, that of the last
    run.
    """
    # A bare retry is about the failures of the last run; any other run is what its flags and variables say.
    again = again or (retry_failures and not any(options.values()))
    settings = Settings.last(**options) if again else Settings.read(**options)
    _run(settings, retry_failures=retry_failures, allow_removal=allow_removal, until=until)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(as_json: bool) -> None:
    """Say what a run would have to embed, how long that takes, and what it needs."""
    from abo_pipeline.runner import plan_run
    from abo_pipeline.terminal import plan_lines

    settings = Settings.last()
    found = plan_run(settings)
    if as_json:
        click.echo(json.dumps(asdict(found) | {"minutes": found.minutes}, indent=1))
        return
    for what, words in plan_lines(found, settings):
        out.print(f"[bold]{what:<11}[/] {escape(words)}")


@cli.command()
@click.option("--all", "every", is_flag=True, help="List every image, not just one a reason.")
@click.option("--json", "as_json", is_flag=True, help="Print every failure as JSON.")
def failures(every: bool, as_json: bool) -> None:
    """List the images that could not be embedded, by reason."""
    from abo_pipeline.store import opened_store

    settings = Settings.last()
    with opened_store(settings) as store:
        space = store.find_space(settings.space_name)
        reasons = space.failures_by_reason() if space else []
        images = space.failures() if space and (every or as_json) else []
    if as_json:
        click.echo(json.dumps([asdict(image) for image in images], indent=1, ensure_ascii=False, default=str))
    elif not reasons:
        out.print("no failures")
    elif every:
        _print_table(
            ("image", "path", "stage", "error", "what it says"),
            [(image.image_id, image.path, image.stage, image.error, image.message) for image in images],
        )
    else:
        _print_table(
            ("images", "stage", "error", "for example"),
            [(f"{reason.images:,}", reason.stage, reason.error, reason.example) for reason in reasons],
        )
        out.print("\n`abo failures --all` lists every image; `abo retry-failures` tries them again.")


@cli.command(name="retry-failures")
def retry_failures() -> None:
    """Try the images again that failed, and no others; then renew index and report."""
    from abo_pipeline import runner
    from abo_pipeline.terminal import TerminalProgress

    with TerminalProgress(out, err) as progress:
        runner.retry_failures(Settings.last(), progress)


_FILTERS = (
    *(
        click.option(f"--{name.replace('_', '-')}", name, multiple=True, metavar="VALUE", help=help_text)
        for name, help_text in (
            ("product_type", "Of this type, such as CHAIR; repeated: any of them."),
            ("color", "Of this colour, in the seller's words; repeated: any of them."),
            ("brand", "Of this brand; repeated: any of them."),
            ("country", "Listed in this country, such as US; repeated: any of them."),
            ("keyword", "With this keyword; repeated: any of them."),
            ("title", "With these words in the product's title."),
        )
    ),
    *(
        click.option(f"--{bound}-{side}", type=int, metavar="PIXELS", help=f"{words} {side} of the original image.")
        for side in ("width", "height")
        for bound, words in (("min", "Least"), ("max", "Greatest"))
    ),
)


def _filtered(command: _F) -> _F:
    """Give a command the options of ``Filters``."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@cli.command()
@click.argument("text", required=False)
@click.option("--image", type=click.Path(path_type=Path), multiple=True, metavar="FILE", help="Search by a picture.")
@click.option("--url", multiple=True, metavar="URL", help="Search by a picture in the web.")
@click.option("--like", multiple=True, metavar="ID", help="Search by a stored image.")
@click.option("--plus", multiple=True, metavar="TEXT", help="What hits are to be like as well.")
@click.option("--minus", multiple=True, metavar="TEXT", help="What hits are to be unlike.")
@click.option("-k", default=10, show_default=True, help="How many hits.")
@click.option("--size", type=int, metavar="N", help="Among so many images. Default: the largest indexed size.")
@click.option("--page", default=1, show_default=True, help="The k hits after so many pages of k.")
@click.option("--min-similarity", type=float, metavar="COSINE", help="Leave out hits below this, -1 to 1.")
@_filtered
@click.option("--fold", is_flag=True, help="Make one hit of pictures of the same product, or that look the same.")
@click.option("--near", type=float, metavar="COSINE", help="What looks the same, with --fold. Default: 0.98.")
@click.option("--facets", is_flag=True, help="Count types, colours and brands among the hits.")
@click.option("--explain", is_flag=True, help="Show how the answer came about, and each hit's exact rank.")
@click.option("--space", metavar="NAME", help="In this embedding space. Default: what `abo spaces use` has set.")
@click.option("--grid", type=click.Path(path_type=Path), metavar="PNG", help="Write the hits as a row of pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print the hits as JSON.")
def search(
    text: str | None,
    image: tuple[Path, ...],
    url: tuple[str, ...],
    like: tuple[str, ...],
    plus: tuple[str, ...],
    minus: tuple[str, ...],
    grid: Path | None,
    as_json: bool,
    fold: bool,
    near: float | None,
    **options: Any,
) -> None:
    """Find images by a TEXT, by a picture, by a stored image, or by several of them together.

    The flags that say what to search by may be repeated and combined. A mix may also be written as the TEXT, with
    weights if need be: '"red shoe" + like:ID - 0.5*"heel"', with terms "…", like:ID, image:FILE and url:URL.
    """
    from abo_pipeline.filters import FIELDS, Filters
    from abo_pipeline.folding import NEAR, FoldRules
    from abo_pipeline.queries import one_query

    if grid is not None:
        _check_grid(grid)
    query = one_query(text, images=image, urls=url, likes=like, plus=plus, minus=minus)
    filters = Filters.of(**{name: options.pop(name) for name in FIELDS})
    rules = FoldRules(near=NEAR if near is None else near) if fold or near is not None else None
    found = _search(Settings.last(), query, grid=grid, filters=filters, fold=rules, **options)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=1, ensure_ascii=False))
        return
    _print_found(found)
    if grid is not None and found.hits:
        out.print(f"pictures: {escape(str(grid))}")


@cli.command(name="export")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.parquet")
@click.option("--space", metavar="NAME", help="Which embedding space. Default: the one that searches use.")
@click.option(
    "--precision",
    type=click.Choice(("float32", "float16")),
    default="float32",
    show_default=True,
    help="float16 takes half the room, and rounds.",
)
def export_(file: Path, space: str | None, precision: str) -> None:
    """Write an embedding space to a parquet FILE, for `abo import` on another machine."""
    from abo_pipeline.portable import export_space
    from abo_pipeline.search import searched_space
    from abo_pipeline.store import opened_store
    from abo_pipeline.terminal import bar

    settings = Settings.last()
    with opened_store(settings) as store, bar("exporting", "vectors", err) as advance:
        found = store.known_space(space or searched_space(store, settings))
        done = export_space(found, file, catalogue=settings.catalogue, precision=precision, progress=advance)
    words = f"{done.rows:,} vectors of space {found.name}, {found.dimension} dimensions in {precision}"
    out.print(f"[bold]exported[/]    {words}, {done.bytes / 1e6:,.1f} MB, in {done.seconds:.1f} s: {escape(str(file))}")


@cli.command(name="import")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.parquet")
@click.option("--space", metavar="NAME", help="Into which embedding space. Default: that of the last run.")
@click.option(
    "--check",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="N",
    help="Embed so many of its images again before anything is accepted.",
)
def import_(file: Path, space: str | None, check: int) -> None:
    """Take in the vectors of a parquet FILE that `abo export` wrote, so that they need not be embedded here."""
    from abo_pipeline.encoder import encoder_from
    from abo_pipeline.portable import import_space
    from abo_pipeline.store import opened_store
    from abo_pipeline.terminal import stage_bars

    settings = Settings.last(space=space)
    with opened_store(settings) as store, stage_bars("images", err) as advance:
        done = import_space(file, store, encoder_from(settings), settings, check=check, progress=advance)
    images = done.adopted
    out.print(f"[bold]checked[/]     {done.checked:,} images embedded again here, least cosine {done.least_cosine:.5f}")
    out.print(
        f"[bold]imported[/]    accepted {images.accepted:,} of {done.rows:,} vectors into space {settings.space_name}, "
        f"in {done.seconds:.1f} s; {images.unchanged:,} were there already, {images.unknown:,} are not in the "
        f"catalogue, {images.other_bytes:,} have other bytes here"
    )
    out.print(f"[bold]next[/]        abo run --again --space {settings.space_name}: embed the rest, build the indexes")
    _note_other_space(settings, "These are vectors of")


@cli.command()
@click.option("--strategy", type=click.Choice(get_args(IndexStrategy)), help="How to index. Default: as before.")
@click.option("--size", "sizes", type=int, multiple=True, metavar="N", help="Only this size; may be repeated.")
@click.option("--rebuild", is_flag=True, help="Build anew what is there, as after damage or an upgrade.")
@click.option("--space", metavar="NAME", help="Of this embedding space. Default: that of the last run.")
def index(strategy: str | None, sizes: tuple[int, ...], rebuild: bool, space: str | None) -> None:
    """Build the vector indexes, and measure what they find. Searches go on meanwhile.

    A strategy that is given is remembered for the commands that follow, until the next `abo run`; ABO_STRATEGY lasts.
    """
    from abo_pipeline.runner import build_indexes
    from abo_pipeline.terminal import TerminalProgress, index_notes, index_rows

    settings = _of_space(space, strategy=strategy)
    with TerminalProgress(out, err) as progress:
        metadata = build_indexes(settings, progress, sizes=sizes, rebuild=rebuild)
    _print_table(*index_rows(metadata))
    for words in index_notes(metadata):
        out.print(escape(words), soft_wrap=False)
    _note_other_space(settings, "These are indexes of")


@cli.group(cls=_CommandGroup)
@click.option("--json", "as_json", is_flag=True, help="Print the spaces as JSON.")
@click.pass_context
def spaces(context: click.Context, as_json: bool) -> None:
    """List the embedding spaces: a model's vectors each, side by side; switch which one searches use."""
    if context.invoked_subcommand is not None:
        return
    from abo_pipeline.store import opened_store
    from abo_pipeline.terminal import space_rows

    with opened_store(Settings.last()) as store:
        found = store.spaces()
    if as_json:
        click.echo(json.dumps([asdict(space) for space in found], indent=1, default=str))
    elif not found:
        out.print("no spaces yet: `abo run` (or `abo demo`) makes the first")
    else:
        _print_table(*space_rows(found))


@spaces.command(cls=_Command)
@click.argument("name")
def use(name: str) -> None:
    """Have searches use the space NAME from now on."""
    from abo_pipeline.store import opened_store

    with opened_store(Settings.last()) as store:
        before = store.switch_default(name)
    if before == name:
        out.print(f"searches use {name} already")
    else:
        out.print(f"searches use {name} now" + (f", and used {before} before: `abo spaces back`" if before else ""))
    _warn_of_the_variable(name)


@spaces.command(cls=_Command)
def back() -> None:
    """Have searches use the space again that they used before."""
    from abo_pipeline.store import opened_store

    with opened_store(Settings.last()) as store:
        now = store.switch_back()
    out.print(f"searches use {now} again")
    _warn_of_the_variable(now)


@spaces.command(cls=_Command)
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(name: str, yes: bool) -> None:
    """Remove the space NAME: its vectors, indexes and records. Images and products stay."""
    from abo_pipeline.store import opened_store

    with opened_store(Settings.last()) as store:
        # One that is not there, or must stay, is refused without a question.
        there = next((space for space in store.spaces() if space.name == name and not space.is_default), None)
        if there and not yes and not _may_go(there):
            out.print("nothing was dropped")
            return
        store.drop_space(name)
    out.print(f"dropped {name}")


@cli.command()
@click.option("--size", type=int, metavar="N", help="Among so many images. Default: the largest size that is embedded.")
@click.option("--rungs", metavar="NAME,NAME", help="Only these ways to store and index. Default: all.")
@click.option("--space", metavar="NAME", help="Of this embedding space. Default: that of the last run.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def ladder(size: int | None, rungs: str | None, space: str | None, as_json: bool) -> None:
    """Measure the ways to store and index the vectors, and recommend one. Takes minutes."""
    from abo_pipeline.runner import run_ladder
    from abo_pipeline.terminal import TerminalProgress, ladder_rows

    names = None if rungs is None else [name.strip() for name in rungs.split(",") if name.strip()]
    settings = _of_space(space)
    with TerminalProgress(err if as_json else out, err) as progress:
        found = run_ladder(settings, progress, size=size, rungs=names)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=1, ensure_ascii=False))
        return
    _print_numbers(*ladder_rows(found))
    out.print("image, text: recall@10 of such queries at that effort; p50/p95: their milliseconds")
    for name, reason in found.left_out.items():
        out.print(escape(f"{name}: left out, because {reason}"))
    out.print(f"\n{escape(found.advice.words)}")
    _note_other_space(settings, "This is about")


@cli.command()
@click.option("-h", "--host", default="127.0.0.1", show_default=True)
@click.option("-p", "--port", default=3000, show_default=True)
def dev(host: str, port: int) -> None:
    """Open the pipeline in Dagster's UI, with the state of the last run."""
    from abo_pipeline.runner import dagster_home, dagster_instance

    settings = Settings.last()
    # Webserver and daemon would otherwise both set up a fresh instance at once, and trip over each other.
    with dagster_instance(settings):
        home = dagster_home(settings)
    environment = os.environ | {"DAGSTER_HOME": str(home), "ABO_STATE_DIR": str(settings.state_dir)}
    dagster = Path(sys.executable).with_name("dagster")
    workspace = PROJECT_ROOT / "workspace.yaml"
    code = ["-w", str(workspace)] if workspace.is_file() else ["-m", "abo_pipeline.definitions"]
    arguments = ["dev", *code, "-h", host, "-p", str(port)]
    # `dagster dev` imports from the directory it is started in; in this one is nothing that could get in its way.
    os.chdir(home)
    os.execve(dagster, [str(dagster), *arguments], environment)  # noqa: S606 - becomes the server, keeps the terminal


@cli.command()
def doctor() -> None:
    """Check what the pipeline depends on: a line for each, with the remedy where one is needed."""
    from abo_pipeline.doctor import Level, examine

    findings = examine(Settings.last())
    colours = {Level.OK: "green", Level.NOTE: "yellow", Level.BAD: "red"}
    for finding in findings:
        mark = f"[{colours[finding.level]}]{finding.level:<4}[/]"
        out.print(f"{mark} {finding.what:<10} {escape(finding.words)}")
    if any(finding.level is Level.BAD for finding in findings):
        sys.exit(1)


@cli.group(cls=click.Group)
def db() -> None:
    """The embedded Postgres, which is used when ABO_DATABASE_URL is not set; ABO_EMBEDDED says which one."""


@db.command(cls=_Command)
def start() -> None:
    """Start it, or see that it runs."""
    from abo_pipeline.store.database import embedded_server

    settings = Settings.last()
    settings.folder()
    server = embedded_server(settings)
    server.ensure_running()
    out.print(f"running at {escape(server.url())}")


@db.command(cls=_Command)
def stop() -> None:
    """Stop it. Nothing is lost; the next command that needs it starts it again."""
    from abo_pipeline.store.database import embedded_server

    out.print("stopped" if embedded_server(Settings.last()).stop() else "it was not running")


@db.command(cls=_Command)
def status() -> None:
    """Say whether it runs, and where."""
    from abo_pipeline.store.database import embedded_server

    found = embedded_server(Settings.last()).status()
    words = f"running, pid {found.pid}, at {found.url}" if found.running else "not running"
    out.print(escape(f"{words}; data in {found.data_dir}"))


def main() -> None:
    """The entry point: an error is one sentence on standard error and exit code 2."""
    debug = "--debug" in sys.argv
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        err.print("interrupted; what was committed is kept, and the same command goes on from there")
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except AboError as error:
        if debug:
            _print_origin(error)
        err.print(f"[red]error:[/] {escape(str(error))}")
        sys.exit(2)
    except Exception as error:  # noqa: BLE001 - the last resort
        # What nobody foresaw is a bug; a person at a terminal is told so in a sentence all the same.
        if debug:
            _print_origin(error)
        first_line = next(iter(str(error).splitlines()), "")[:300]
        err.print(f"[red]error:[/] this is a bug: {escape(f'{type(error).__name__}: {first_line}')}. ", end="")
        err.print("The same command with --debug shows where; please report it.")
        sys.exit(2)
    sys.exit(code or 0)


def _print_origin(error: Exception) -> None:
    """The traceback; not by rich, which never ends where exceptions lead in a circle, as those from assets do."""
    err.print("".join(traceback.format_exception(error)), end="", markup=False)


def _sample(folder: Path) -> Sample:
    """The drawn archive, drawn unless it is there."""
    from abo_pipeline.sample import Sample, draw_sample
    from abo_pipeline.terminal import bar

    there = Sample.of(folder)
    if there.archive.is_file() and there.listings.is_file():
        return there
    with bar("drawing", "pictures", err) as advance:
        return draw_sample(folder, progress=advance)


def _run(
    settings: Settings, *, retry_failures: bool = False, allow_removal: bool = False, until: str | None = None
) -> None:
    """Check what is cheap to check, then run."""
    from abo_pipeline.encoder import where_is
    from abo_pipeline.runner import ASSETS, run_pipeline, space_searched_instead
    from abo_pipeline.terminal import TerminalProgress

    if until is not None and until not in ASSETS:
        raise SettingsError(f"--until names no asset: {until!r}. There are {', '.join(ASSETS)}.")
    settings.folder()
    # That a model cannot be had should be known before gigabytes are fetched.
    where = where_is(settings.model)
    with TerminalProgress(out, err) as progress:
        progress.say("model", where)
        run_pipeline(
            settings,
            progress,
            retry_failures=retry_failures,
            allow_removal=allow_removal,
            until=until or ASSETS[-1],
        )
        if other := space_searched_instead(settings):
            name = settings.space_name
            progress.say("space", f"embedded into {name}, while searches use {other}. To switch: abo spaces use {name}")


def _of_space(name: str | None, **options: str | None) -> Settings:
    """The settings of the last run, but of another space and of the model and precision that it was made with.

    Raises:
        StoreError: there is no such space.
    """
    if name is None:
        return Settings.last(**options)
    from abo_pipeline.store import opened_store

    with opened_store(Settings.last(space=name)) as store:
        space = store.known_space(name)
    return Settings.last(space=name, model=space.model, precision="auto", **options)


def _note_other_space(settings: Settings, what: str) -> None:
    """Say that searches use another space than the one that something was done to."""
    from abo_pipeline.runner import space_searched_instead

    if other := space_searched_instead(settings):
        name = settings.space_name
        err.print(f"[yellow]note:[/] {what} space {name}, while searches use {other}: --space {other}, or ", end="")
        err.print(f"abo spaces use {name}")


def _warn_of_the_variable(default: str) -> None:
    """Say that searches from here use another space all the same."""
    variable = Settings.read().space
    if variable not in ("", default):
        err.print(f"[yellow]note:[/] ABO_SPACE is set here, and goes before: to {variable}")


def _may_go(space: SpaceSummary) -> bool:
    """Ask whether a space may be dropped.

    Raises:
        SettingsError: there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise SettingsError(f"There is nobody to ask whether space {space.name} may be dropped: say so with --yes.")
    size = f"{(space.table_bytes + space.index_bytes) / 1e6:,.1f} MB"
    return click.confirm(f"Drop space {space.name}, {space.vectors:,} vectors of {space.model}, {size}?")


def _check_grid(grid: Path) -> None:
    """See that a picture can be written there, before a model is loaded for it."""
    if grid.suffix.lower() not in _GRID_TYPES:
        raise QueryError(f"The pictures cannot be written to {grid}: end its name with {' or '.join(_GRID_TYPES)}.")
    if not grid.absolute().parent.is_dir():
        raise QueryError(f"The pictures cannot be written to {grid}: there is no folder {grid.absolute().parent}.")


@dataclass(frozen=True)
class _Found:
    """A search's answer, and what else was asked about it."""

    hits: Hits
    coverage: Coverage | None
    facets: Facets | None
    keywords: list[Count]
    explained: ExplainedHits | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        more = {
            "facets": self.facets and asdict(self.facets) | {"keywords": [asdict(word) for word in self.keywords]},
            "explained": self.explained and asdict(self.explained),
        }
        return self.hits.as_json() | {name: value for name, value in more.items() if value is not None}


def _search(
    settings: Settings,
    query: str | Query,
    k: int = 10,
    *,
    grid: Path | None = None,
    space: str | None = None,
    facets: bool = False,
    explain: bool = False,
    **options: Any,
) -> _Found:
    """An answer, with the pictures written and the rest asked for as wanted."""
    from abo_pipeline.report import coverage_of
    from abo_pipeline.search import open_search

    image_search = open_search(settings, space=space)
    hits = image_search(query, k, **options)
    how = {name: value for name, value in options.items() if name != "min_similarity"}
    if grid and hits:
        try:
            image_search.display(hits).savefig(grid)
        except OSError as error:
            raise QueryError(f"The pictures cannot be written to {grid}: {error.strerror}.") from None
    return _Found(
        hits,
        coverage_of(image_search, hits.size) if hits.size else None,
        image_search.facets(hits) if facets else None,
        image_search.keywords(hits) if facets else [],
        image_search.explain(query, k, **how, hits=hits) if explain else None,
    )


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        is_number = column in _NUMBERS
        table.add_column(column, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def _print_numbers(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose first column is words."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, justify="right" if column != columns[0] else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def _print_found(found: _Found) -> None:
    from abo_pipeline.queries import shown
    from abo_pipeline.terminal import explained_lines, facet_lines

    hits, ranks = found.hits, found.explained.exact_ranks if found.explained else {}
    among = f", among {found.coverage.size:,} images ({found.coverage})" if found.coverage else ""
    only = f", only {hits.filters}" if hits.filters else ""
    table = Table(title=escape(f"{shown(hits.query)}{among}{only}"), title_justify="left", box=None, pad_edge=False)
    table.show_header = bool(hits)
    table.add_column("", justify="right")
    table.add_column("similarity", justify="right")
    if ranks:
        table.add_column("exact rank", justify="right")
    table.add_column("image")
    table.add_column("what it shows")
    for hit in hits:
        exact = [str(ranks.get(hit.image_id, "-"))] if ranks else []
        more = f" (+{len(hit.folded):,} alike)" if hit.folded else ""
        table.add_row(
            str(hit.rank), f"{hit.similarity:.3f}", *exact, escape(hit.image_id), escape(f"{hit.caption}{more}")
        )
    out.print(table)
    if not hits:
        out.print("no hits")
    if hits.match and hits.page == 1:
        out.print(f"[dim]{hits.match}[/]" if hits.match.good else f"[yellow]{hits.match}[/]")
    beside = Table.grid(padding=(0, 1))
    beside.add_column(style="bold", no_wrap=True)
    beside.add_column()
    for line in (
        *(facet_lines(found.facets, found.keywords) if found.facets else ()),
        *(explained_lines(found.explained) if found.explained else ()),
    ):
        beside.add_row(*map(escape, line))
    if beside.rows:
        out.print(beside)
    if hits.size is None:
        named = f" --space {hits.space}" if hits.space else ""
        err.print(f"[yellow]note:[/] no size is indexed yet, so everything was compared: abo index{named}")
    for warning in hits.warnings:
        err.print(f"[yellow]note:[/] {escape(warning)}")
