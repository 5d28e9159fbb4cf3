"""The server install as it runs: the compose file's services as processes, on a Postgres that asks for a password."""

from collections.abc import Iterator
from urllib.parse import quote

import psycopg
import pytest
import requests

from abo_pipeline.sample import Sample
from abo_pipeline_tests.deploy import compose
from abo_pipeline_tests.deploy.composition import Composition
from abo_pipeline_tests.e2e.harness import Client, wait_until

pytestmark = pytest.mark.slow

# Every character that means something in a URL, a shell, a compose file or a libpq string.
PASSWORD = "p@ss:w/rd #%41?&='\"\\ $HOME ${HOME} é"  # noqa: S105 - of a server that lives as long as this module
PARTITIONS = [f"{number:02}of2" for number in range(2)]


@pytest.fixture(scope="module")
def composition(tmp_path_factory: pytest.TempPathFactory, sample: Sample) -> Iterator[Composition]:
    """Every service of docker-compose.yml, healthy."""
    dotenv = {
        "POSTGRES_PASSWORD": PASSWORD,
        "POSTGRES_SHARED_BUFFERS": "128MB",
        "ARCHIVES": str(sample.archive.parent),
        "ABO_ARCHIVE": f"/archives/{sample.archive.name}",
        "ABO_LISTINGS": f"/archives/{sample.listings.name}",
        "ABO_MODEL": "small-clip",
        "ABO_DEVICE": "cpu",
        "ABO_PARTITIONS": str(len(PARTITIONS)),
        "ABO_SIZES": "20,60,120",
        "ABO_QUERIES": "a red chair;like:",
        "ABO_REPORT_K": "3",
        "ABO_BATCH_SIZE": "16",
    }
    file = compose.read(compose.BASE, variables=dotenv)
    composition = Composition(
        tmp_path_factory.mktemp("server"), file, dotenv, folders={"/archives": sample.archive.parent}
    )
    try:
        composition.up(*file["services"])
        for name in file["services"]:
            if name != "migrate":
                composition.wait_until_healthy(name)
        yield composition
    finally:
        composition.down()


@pytest.fixture(scope="module")
def client(composition: Composition) -> Client:
    """The UI."""
    client = Client(f"http://127.0.0.1:{composition.ports[3000]}")
    client.wait_until_loaded()
    return client


@pytest.fixture(scope="module")
def filled(client: Client, composition: Composition) -> Composition:
    """The same after everything was materialized through the UI."""
    materialize(client, "raw_archive", "listings", "image_paths")
    launched = [client.launch_run(assets=["image_embeddings"], partition=key) for key in PARTITIONS]
    assert [client.wait_for_run(run, seconds=240).status for run in launched] == ["SUCCESS"] * len(PARTITIONS)
    materialize(client, "embedding_index", "search_report")
    return composition


def connect(composition: Composition, database: str, *, user: str = "abo", password: str = PASSWORD):
    return psycopg.connect(
        host="127.0.0.1", port=composition.ports[5432], user=user, password=password, dbname=database
    )


def materialize(client: Client, *assets: str, partition: str | None = None) -> None:
    run = client.wait_for_run(client.launch_run(assets=assets, partition=partition), seconds=240)

    assert run.status == "SUCCESS", client.messages(run.id)


def test_everything_is_made_on_the_server_and_every_image_accounted_for(filled):
    found = rows(filled)

    assert found["kept"] > 100
    assert found["embedded"] + found["failed"] == found["kept"]
    with connect(filled, "dagster") as connection:
        (runs,) = connection.execute("SELECT count(*) FROM runs WHERE status = 'SUCCESS'").fetchone()
    assert runs == 2 + len(PARTITIONS)


def test_the_reports_are_pages_of_their_own_server(filled):
    page = requests.get(f"http://127.0.0.1:{filled.ports[8080]}/abo/small_clip/", timeout=10)

    assert page.status_code == 200
    assert "a red chair" in page.text


def test_commands_in_the_code_container_go_on_from_what_the_ui_did(filled):
    doctor = filled.run("code", ["abo", "doctor"])
    run = filled.run("code", ["abo", "run"])

    assert doctor.returncode == 0, doctor
    assert b"pending 0" in doctor.stdout
    assert run.returncode == 0, run
    assert b"nothing to embed" in run.stdout


def test_a_run_whose_container_went_away_is_recorded_as_failed_and_run_again(client, filled):
    before = rows(filled)
    with connect(filled, "abo") as connection:
        connection.execute("DELETE FROM abo.embeddings_small_clip WHERE sample_key < (1::bigint << 62)")
    run_id = client.launch_run(assets=["image_embeddings"], partition=PARTITIONS[0])
    wait_until(lambda: client.run(run_id).status == "STARTED", "the run's start", 60)

    filled.kill("code")
    filled.up("code")
    filled.wait_until_healthy("code")
    again = wait_until(
        lambda: [run for run in client.runs() if run.tags.get("dagster/parent_run_id") == run_id],
        "a second run of the same",
        120,
        details=lambda: filled.tail("daemon"),
    )

    assert client.run(run_id).status == "FAILURE"
    assert any("is gone, and the run with it" in message for message in client.messages(run_id))
    assert [client.wait_for_run(run.id, seconds=240).status for run in again] == ["SUCCESS"]
    assert again[0].partition == PARTITIONS[0]
    assert rows(filled) == before


def test_a_health_check_notices_that_its_service_is_gone(composition):
    composition.kill("reports")

    assert not composition.is_healthy("reports")

    composition.up("reports")
    composition.wait_until_healthy("reports")


def test_postgres_lets_in_one_role_with_the_password_alone(composition):
    with connect(composition, "abo") as connection:
        (superuser,) = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()

    assert not superuser
    for wrong in ({"password": "wrong"}, {"password": ""}, {"user": "postgres"}):
        with pytest.raises(psycopg.OperationalError, match=r"password authentication failed|no password supplied"):
            connect(composition, "abo", **wrong)


def test_the_image_s_home_of_dagster_holds_what_it_was_built_with_and_the_logs_of_runs(filled):
    home = filled.root / "opt" / "dagster"

    # Dagster makes the folders of its telemetry also where that is off.
    made = {".logs_queue", "logs"}
    assert {path.name for path in home.iterdir()} - made == {"dagster.yaml", "storage", "workspace.yaml"}
    assert [path for name in made for path in (home / name).glob("*")] == []


def test_the_password_is_in_no_file(filled):
    spellings = {PASSWORD, quote(PASSWORD), quote(PASSWORD, safe=""), repr(PASSWORD)[1:-1]}

    files = [path for path in filled.root.rglob("*") if path.is_file()]
    telling = [path for path in files if any(text.encode() in path.read_bytes() for text in spellings)]

    assert len(files) > 100
    assert telling == []


def test_a_dump_of_the_database_brings_back_what_was_lost(filled):
    dump = filled.run("postgres", ["pg_dump", "--username", "postgres", "--format", "custom", "abo"])
    before = rows(filled)
    with connect(filled, "abo") as connection:
        connection.execute("TRUNCATE abo.embeddings_small_clip, abo.failures")

    restore = ["pg_restore", "--username", "postgres", "--clean", "--if-exists", "--dbname", "abo"]
    restored = filled.run("postgres", restore, dump.stdout)

    assert dump.returncode == 0, dump.stderr
    assert restored.returncode == 0, restored.stderr
    assert before["embedded"] > 0
    assert rows(filled) == before


def rows(composition: Composition) -> dict[str, int]:
    tables = {"kept": "images", "embedded": "embeddings_small_clip", "failed": "failures"}
    with connect(composition, "abo") as connection:
        return {
            what: connection.execute(f"SELECT count(*) FROM abo.{table}").fetchone()[0]
            for what, table in tables.items()
        }
