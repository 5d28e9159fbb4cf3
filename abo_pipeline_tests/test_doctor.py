"""What the doctor says of a laptop, and of a machine whose runs go to others."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.registry import known_implementations
from sqlalchemy import make_url

from abo_pipeline import doctor
from abo_pipeline.doctor import Level, examine
from abo_pipeline.encoder import ClipEncoder
from abo_pipeline.sample import SMALL_CLIP
from abo_pipeline.settings import PROJECT_ROOT, Settings
from abo_pipeline.store.database import embedded_server
from abo_pipeline.store.spaces import Embedded
from abo_pipeline_tests.e2e.celery_workers import COMMAND
from abo_pipeline_tests.e2e.harness import Process, child_environment, script, wait_until
from abo_pipeline_tests.e2e.redis_server import redis_server

EVERYTHING = (
    "python",
    "machine",
    "state",
    "assets",
    "archive",
    "listings",
    "model",
    "postgres",
    "space",
    "search",
    "dagster",
    "launcher",
)


def found(settings: Settings) -> dict[str, tuple[str, str]]:
    return {finding.what: (str(finding.level), finding.words) for finding in examine(settings)}


def levels(settings: Settings) -> dict[str, str]:
    return {what: level for what, (level, _) in found(settings).items()}


def changed(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update=values)


@pytest.fixture(autouse=True)
def roomy_machine(monkeypatch):
    """No GPU, and a disk with room: what the machine of the tests is like does not matter here."""
    monkeypatch.setattr(doctor, "_gpus", list)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: ROOMY)


GPUS = doctor._gpus
ROOMY = shutil.disk_usage("/")._replace(free=50_000_000_000)


@pytest.fixture
def several_machines(settings, tmp_path, monkeypatch) -> Path:
    """The instance of deploy/dagster-celery.yaml, with a server for its storage and none for its queue."""
    home = tmp_path / "dagster_home"
    home.mkdir()
    shutil.copy(PROJECT_ROOT / "deploy" / "dagster-celery.yaml", home / "dagster.yaml")
    url = make_url(settings.database_url.get_secret_value()).set(drivername="postgresql+psycopg2")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", url.render_as_string(hide_password=False))
    monkeypatch.setenv("ABO_CELERY_BROKER", "redis://:s3cret@127.0.0.1:9/0")
    return home


def test_on_a_laptop_everything_is_well(settings):
    said = found(settings)

    assert {what: level for what, (level, _) in said.items()} == dict.fromkeys(EVERYTHING, "ok")
    assert said["assets"][1] == f"{settings.state_dir}/assets/abo"
    assert said["launcher"][1] == "LocalRunLauncher: runs are processes on this machine"
    assert said["dagster"][1] == f"{settings.state_dir}/dagster (in the state folder), its records in SQLite"
    assert " GB free" in said["state"][1]
    assert "no pgvectorscale (not needed)" in said["postgres"][1]


def test_what_searches_use_is_named_and_its_model_looked_for(settings, store, encoder, tmp_path, monkeypatch):
    folder = shutil.copytree(SMALL_CLIP, tmp_path / "clip")
    (folder / "extra.json").write_text("{}")
    assert found(settings)["search"] == ("ok", "small_clip, as soon as something is embedded into it")

    store.open_space("first", ClipEncoder(str(folder))).write([Embedded("a", 0, "d", np.ones(128, np.float32))], [])
    store.open_space("second", encoder)
    assert found(settings)["search"] == ("ok", f"first, made with {folder}")

    shutil.rmtree(folder)
    level, words = found(settings)["search"]
    assert (level, words.split(" and that ")[0]) == (
        "bad",
        f"Space first is searched with the model that it was made with, {folder},",
    )
    monkeypatch.setenv("ABO_SPACE", "second")
    assert found(settings)["search"] == ("ok", "second, made with small-clip, named by ABO_SPACE")


def test_the_doctor_neither_makes_dagsters_records_nor_imports_torch(settings):
    program = (
        "import sys; from abo_pipeline.doctor import examine; from abo_pipeline.settings import Settings;"
        "examine(Settings.read()); print('torch' in sys.modules)"
    )
    environment = os.environ | {
        "ABO_STATE_DIR": str(settings.state_dir),
        "ABO_DATABASE_URL": settings.database_url.get_secret_value(),
        "ABO_MODEL": settings.model,
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"
    assert [path.name for path in (settings.state_dir / "dagster").iterdir()] == ["dagster.yaml"]


def test_a_full_disk_is_worth_a_look(settings, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: ROOMY._replace(free=1_500_000_000))

    assert found(settings)["state"] == (
        "note",
        f"{settings.state_dir}, 1.5 GB free: little for archives and vectors. Make room, or set ABO_STATE_DIR to "
        "another disk",
    )


def test_a_gpu_that_torch_cannot_use_is_worth_a_look(settings, tmp_path, monkeypatch):
    command = tmp_path / "bin" / "nvidia-smi"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\necho 'NVIDIA H200'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    monkeypatch.setattr(doctor, "_gpus", GPUS)
    monkeypatch.setattr(doctor, "version", lambda _: "2.9.0+cpu")
    level, words = found(settings)["machine"]

    assert level == "note"
    assert words.endswith("NVIDIA H200, which the installed torch cannot use: install a CUDA build of it")
    monkeypatch.setattr(doctor, "version", lambda _: "2.9.0+cu128")
    level, words = found(settings)["machine"]
    assert (level, words.endswith(", NVIDIA H200")) == ("ok", True)


# --- Places that are shared ---


def test_frames_in_a_store_are_looked_for_there(settings):
    store = fsspec.filesystem("memory")
    shared = changed(settings, assets="memory://doctor")

    assert found(shared)["assets"] == ("ok", "memory://doctor/abo, nothing there yet")
    store.pipe_file("/doctor/abo/image_paths.parquet", b"")
    try:
        assert found(shared)["assets"] == ("ok", "memory://doctor/abo")
    finally:
        store.rm("/doctor", recursive=True)


class NoBuckets(fsspec.AbstractFileSystem):
    """A store in which nobody has made a bucket."""

    protocol = "s3"

    def info(self, path, **_):
        raise FileNotFoundError(path)


def test_a_bucket_that_is_not_there_is_bad(settings, monkeypatch):
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", NoBuckets)

    assert found(changed(settings, assets="s3://bucket/frames"))["assets"] == (
        "bad",
        "s3://bucket/frames/abo: there is no such bucket. Create it, or set ABO_ASSETS to another place",
    )


@pytest.mark.parametrize(
    ("what", "values", "words"),
    [
        (
            "assets",
            {"assets": "nosuch://me:s3cret@bucket"},
            "nosuch://bucket/abo cannot be reached: nothing here knows nosuch:// addresses. Write it like "
            "s3://bucket/name.",
        ),
        (
            "assets",
            {"assets": f"{__file__}/frames"},
            f"{__file__}/frames/abo cannot be written to. Set ABO_ASSETS to a folder that can, or to an s3:// URL.",
        ),
        (
            "archive",
            {"archive": "/no/such.tar"},
            "/no/such.tar does not exist. Give the path of an archive, or a URL to fetch it from.",
        ),
        (
            "archive",
            {"archive": "nosuch://me:s3cret@bucket/a.tar"},
            "nosuch://bucket/a.tar cannot be fetched. Give a path, or a URL that begins with http://, https:// or "
            "file://, or with the name of an object store such as s3://.",
        ),
    ],
)
def test_a_place_that_cannot_be_reached_is_bad(settings, what, values, words):
    assert found(changed(settings, **values))[what] == ("bad", words)


def test_an_archive_in_a_store_whose_package_is_missing_is_bad(settings, monkeypatch):
    entry = {"class": "no_such_package.Shop", "err": "Install no_such_package to access Shop"}
    monkeypatch.setitem(known_implementations, "absent", entry)

    assert found(changed(settings, archive="absent://bucket/a.tar"))["archive"] == (
        "bad",
        "absent://bucket/a.tar needs a package that is not installed. Install no_such_package to access Shop.",
    )


# --- Several machines ---


def test_what_other_machines_cannot_reach_is_named(settings, several_machines):
    (several_machines / "dagster.yaml").write_text(
        "run_launcher: {module: dagster_docker, class: DockerRunLauncher}\n", encoding="utf-8"
    )
    embedded = changed(settings, database_url=None)

    try:
        said = found(embedded)
    finally:
        embedded_server(embedded).stop()

    assert {what: level for what, (level, _) in said.items() if level != "ok"} == {
        "assets": "note",
        "archive": "note",
        "listings": "note",
        "postgres": "bad",
        "dagster": "bad",
    }
    assert said["postgres"][1].endswith(
        ", embedded in this machine's state folder, where DockerRunLauncher's workers on other machines cannot reach "
        "it. Set ABO_DATABASE_URL to one server for all"
    )
    assert said["dagster"][1] == (
        f"{several_machines} (DAGSTER_HOME), its records in SQLite, which only this machine can read, while "
        "DockerRunLauncher hands runs to others. Give dagster.yaml a storage in Postgres, as in "
        "deploy/dagster-celery.yaml"
    )
    assert said["assets"][1] == (
        f"{settings.state_dir}/assets/abo, in the state folder: every machine must reach the same one. Mount it at "
        "this path on each, or set ABO_ASSETS to an object store such as s3://bucket/abo"
    )
    assert said["archive"][1].endswith(
        "MB: it must be at this path on each machine. With a URL each fetches a copy of its own"
    )
    assert said["launcher"][1] == "DockerRunLauncher: runs may be on other machines"


@pytest.mark.usefixtures("several_machines")
def test_a_queue_that_does_not_answer_is_bad_and_its_password_is_not_shown(settings):
    said = found(settings)

    assert said["launcher"] == (
        "bad",
        "The broker at redis://127.0.0.1:9/0 does not answer (OperationalError). Check that it runs, and "
        "ABO_CELERY_BROKER.",
    )
    assert said["dagster"][0] == "ok"
    assert "s3cret" not in repr(said)


@pytest.mark.usefixtures("several_machines")
def test_a_queue_without_workers_is_worth_a_look(settings, tmp_path, monkeypatch):
    with redis_server(tmp_path / "redis") as url:
        monkeypatch.setenv("ABO_CELERY_BROKER", url)

        assert found(settings)["launcher"] == (
            "note",
            f"CeleryRunLauncher: runs go through {url}, where no worker answers now: start one on each machine",
        )


@pytest.mark.slow
@pytest.mark.usefixtures("several_machines")
def test_the_workers_that_answer_are_named(settings, tmp_path, monkeypatch):
    command = [script("celery"), *COMMAND, "--hostname", "one@here"]
    with redis_server(tmp_path / "redis") as url:
        monkeypatch.setenv("ABO_CELERY_BROKER", url)
        variables = child_environment({"ABO_CELERY_BROKER": url, "ABO_STATE_DIR": str(settings.state_dir)})
        with Process(command, environment=variables, log=tmp_path / "worker.log", cwd=tmp_path) as worker:
            words = wait_until(lambda: ok(found(settings)["launcher"]), "an answer of the worker", details=worker.tail)

    assert words == f"CeleryRunLauncher: runs go through {url} to one@here"


def ok(judgement: tuple[str, str]) -> str | None:
    level, words = judgement
    return words if level == "ok" else None


@pytest.mark.usefixtures("several_machines")
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"DAGSTER_POSTGRES_URL": "postgresql+psycopg2://me:s3cret@127.0.0.1:9/x"},
            "Dagster's storage at postgresql+psycopg2://me:***@127.0.0.1:9/x does not answer: ",
        ),
        (
            {"DAGSTER_POSTGRES_URL": "postgresql+psycopg://me:s3cret@127.0.0.1:9/x"},
            "Dagster's storage needs the driver psycopg2, and its address in dagster.yaml does not name it. Write it "
            "like postgresql+psycopg2://USER:PASSWORD@HOST:5432/DATABASE.",
        ),
        ({"DAGSTER_POSTGRES_URL": "s3cret"}, "The address of Dagster's storage in dagster.yaml is no database URL."),
        (
            {"DAGSTER_POSTGRES_URL": None},
            "DAGSTER_POSTGRES_URL is not set, which Dagster's dagster.yaml takes a value from.",
        ),
        (
            {"DAGSTER_HOME": "/no/such"},
            "DAGSTER_HOME is /no/such: give it the absolute path of a folder that is there.",
        ),
    ],
)
def test_an_instance_that_cannot_be_used_is_bad(settings, monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)

    level, said = found(settings)["dagster"]

    assert (level, said[: len(words)]) == ("bad", words)
    assert "s3cret" not in said


def test_an_instance_without_a_configuration_is_worth_a_look(settings, several_machines):
    (several_machines / "dagster.yaml").unlink()

    level, words = found(settings)["dagster"]

    assert level == Level.NOTE
    assert words.endswith("Copy the project's dagster.yaml there")
    assert levels(settings)["launcher"] == "ok"


def test_a_configuration_that_dagster_refuses_is_named(settings, several_machines):
    (several_machines / "dagster.yaml").write_text("run_lawncher: {}\n", encoding="utf-8")

    said = found(settings)

    assert said["dagster"][0] == "bad"
    assert said["dagster"][1].startswith(f"{several_machines / 'dagster.yaml'} cannot be used: ")
