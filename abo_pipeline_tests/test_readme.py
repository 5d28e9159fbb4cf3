"""Every command and snippet that the README shows, run as it stands there, in its order."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import pytest
import yaml

from abo_pipeline import cli
from abo_pipeline.definitions import defs
from abo_pipeline.ladder import RUNGS
from abo_pipeline.sample import SMALL_CLIP
from abo_pipeline.settings import PROJECT_ROOT, Settings
from abo_pipeline.store import opened_store
from abo_pipeline.store.nearest import first_image
from abo_pipeline.store.strategies import NAMES
from abo_pipeline_tests.archives import jpeg

README = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
OPERATIONS = (PROJECT_ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SEARCH = (PROJECT_ROOT / "docs" / "search.md").read_text(encoding="utf-8")
PERFORMANCE = (PROJECT_ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
IN_DOCS = PROJECT_ROOT / "docs"


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def commands(program: str, page: str = README) -> list[list[str]]:
    """The words of each shown command of a program, without the comment behind it."""
    lines = [line.removeprefix("$ ") for block in blocks("console", page) for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [command for command in words if command[0] == program]


def codes_of(shown: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The exit code of each command of abo, run in this process one after another.

    ID in a command stands for a stored image, and URL for a picture in the web.
    """
    codes = {}
    for words in shown:
        argv = [re.sub(r"\b(ID|URL)\b", lambda name: MEANT[name[0]](), word) for word in words]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exited:
            cli.main()
        codes[shlex.join(words)] = exited.value.code or 0
    return codes


def stored_image() -> str:
    """The id of an image that a run has embedded."""
    settings = Settings.last()
    with opened_store(settings) as store:
        return first_image(store.find_space(settings.space_name))


MEANT = {"ID": stored_image, "URL": lambda: os.environ["PICTURE_URL"]}


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A web server with the picture, as URL; on this machine, which has to be allowed."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PICTURE_URL", f"http://127.0.0.1:{server.server_port}/photo.jpg")
        monkeypatch.setenv("ABO_URL_HOSTS", "127.0.0.1")
        yield
        server.shutdown()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample, database_url: str) -> Path:
    """A folder with the files that the README names, and a machine on which the official archive is a drawn one."""
    shutil.copy(sample.archive, tmp_path / "IMAGES.tar")
    shutil.copy(sample.listings, tmp_path / "LISTINGS.tar")
    shutil.copytree(SMALL_CLIP, tmp_path / "FOLDER")
    (tmp_path / "photo.jpg").write_bytes(jpeg("red", (200, 300)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ABO_DATABASE_URL", database_url)
    monkeypatch.setenv("ABO_ARCHIVE", str(sample.archive))
    monkeypatch.setenv("ABO_MODEL", "small-clip")
    monkeypatch.setenv("ABO_PARTITIONS", "3")
    monkeypatch.setenv("ABO_DEVICE", "cpu")
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("web")
def test_every_abo_command_and_the_snippet_run(home, monkeypatch):
    shown = commands("abo")
    # The README begins with searches of what `make demo` has made; here the runs come first.
    shown.sort(key=lambda words: words[1] != "run")

    codes = codes_of(shown, monkeypatch)
    (snippet,) = blocks("python")
    names: dict = {}
    exec(compile(snippet, "README.md", "exec"), names)  # noqa: S102 - the README's own words

    assert codes == dict.fromkeys(codes, 0)
    assert {words[1] for words in shown} == {"run", "search", "doctor", "db"}
    assert (home / "boots.png").is_file()
    assert (home / "red-shoe.png").is_file()
    assert len(names["hits"]) == 5
    assert all(hit.similarity >= 0.2 for hit in names["more"])
    assert names["mixed"].page == 2


def test_every_make_command_is_there():
    targets = {word for command in commands("make") for word in command[1:]}
    named = set(re.findall(r"`make (\w+)`", README))

    assert targets == {"demo", "test", "dev"}
    for target in sorted(targets | named):
        subprocess.run(["make", "--dry-run", target], cwd=PROJECT_ROOT, check=True, capture_output=True)


def test_every_setting_is_in_the_table_with_its_meaning():
    rows = dict(re.findall(r"^\| `(ABO_\w+)` \| .*? \| (.*?) \|$", README, re.MULTILINE))

    assert rows == {f"ABO_{name.upper()}": field.description for name, field in Settings.model_fields.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_every_abo_command_of_the_operations_page_runs(monkeypatch):
    shown = commands("abo", OPERATIONS)

    codes = codes_of([["abo", "run"], *shown], monkeypatch)

    assert codes == dict.fromkeys(codes, 0)
    assert {words[1] for words in shown} == {"run", "plan", "failures", "retry-failures", "ladder"}


@pytest.mark.slow
@pytest.mark.usefixtures("web")
def test_every_abo_command_of_the_search_page_runs(home, monkeypatch):
    shown = commands("abo", SEARCH)

    codes = codes_of([["abo", "run"], *shown], monkeypatch)

    assert codes == dict.fromkeys(codes, 0)
    assert {words[1] for words in shown} == {"search", "index", "ladder", "run", "spaces", "export", "import"}
    assert (home / "boots.png").is_file()
    assert (home / "clip.parquet").is_file()


def test_the_search_page_names_every_strategy():
    section = SEARCH.split("\n## Indexes and their recall\n")[1].split("\n## ")[0]

    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == NAMES


def table_of(heading: str) -> list[str]:
    """What is named in the first column of the tables of a section of the operations page."""
    section = OPERATIONS.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_the_operations_page_names_every_schedule_sensor_and_check():
    named = {each.name for each in (*defs.schedules, *defs.sensors)}
    checks = {key.name for check in defs.asset_checks for key in check.check_keys}

    assert sorted(table_of("By schedule")) == sorted(named)
    assert sorted(table_of("Checks")) == sorted(checks)


def test_the_operations_page_names_every_rung_of_the_ladder():
    assert table_of("The storage ladder") == [rung.name for rung in RUNGS]


def test_the_question_on_the_operations_page_is_one_that_the_launchpad_takes():
    (question,) = [block for block in blocks("yaml", OPERATIONS) if "search_images" in block]

    assert dg.validate_run_config(defs.resolve_job_def("search_job"), yaml.safe_load(question))


@pytest.mark.parametrize(
    ("page", "folder"), [(README, PROJECT_ROOT), (OPERATIONS, IN_DOCS), (SEARCH, IN_DOCS), (PERFORMANCE, IN_DOCS)]
)
def test_every_file_that_is_linked_to_is_there(page, folder):
    links = re.findall(r"\]\(((?!https?:|#)[^)]+)\)", page)

    assert links
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("page", [OPERATIONS, SEARCH])
def test_every_section_that_is_linked_to_is_there(page):
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}

    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= anchors


def test_every_benchmark_on_the_performance_page_takes_what_it_is_given():
    """They are run in small by their own tests."""
    shown = commands("python", PERFORMANCE)

    assert {words[2] for words in shown} == {"benchmarks.embedding", "benchmarks.loading", "benchmarks.searching"}
    for _, dash_m, module, *given in shown:
        command = [sys.executable, dash_m, module, "--help"]
        said = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout
        assert [word for word in given if word.startswith("--") and word not in said] == []


@pytest.mark.parametrize("page", [README, OPERATIONS, SEARCH, PERFORMANCE])
def test_nothing_is_left_to_be_filled_in(page):
    assert "@@" not in page
