"""What the compose files, the Dockerfile and the instances' configurations say. How they run: ``test_composition``."""

import fnmatch
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.instance.config import PoolGranularity
from dagster._core.run_coordinator.queued_run_coordinator import RunQueueConfig
from pydantic.fields import FieldInfo

from abo_pipeline.settings import PROJECT_ROOT, Settings
from abo_pipeline_tests.deploy import compose, dockerfile
from abo_pipeline_tests.e2e import celery_workers

DEPLOY = PROJECT_ROOT / "deploy"
PASSWORD = {"POSTGRES_PASSWORD": "sesame"}
COMBINATIONS = {
    "alone": (compose.BASE,),
    "gpu": (compose.BASE, compose.OVERRIDES["gpu"]),
    "celery": (compose.BASE, compose.OVERRIDES["celery"]),
    "both": (compose.BASE, *compose.OVERRIDES.values()),
}
ONCE = {"migrate"}
APPLICATION = {"migrate", "code", "webserver", "daemon", "worker"}


@pytest.fixture(params=list(COMBINATIONS))
def services(request: pytest.FixtureRequest) -> dict:
    return compose.read(*COMBINATIONS[request.param], variables=PASSWORD)["services"]


@pytest.mark.parametrize("files", COMBINATIONS.values(), ids=COMBINATIONS)
def test_the_files_and_what_they_make_together_are_compose_s_language(files, tmp_path):
    merged = tmp_path / "compose.yml"
    merged.write_text(yaml.safe_dump(compose.read(*files, variables=PASSWORD)))
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]

    checked = subprocess.run([*checker, *files, merged], capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout


def test_it_is_made_of_these_services():
    made = {name: set(compose.read(*files, variables=PASSWORD)["services"]) for name, files in COMBINATIONS.items()}

    alone = {"postgres", "migrate", "code", "webserver", "daemon", "reports"}
    assert made == {
        "alone": alone,
        "gpu": alone,
        "celery": alone | {"redis", "worker"},
        "both": alone | {"redis", "worker"},
    }


@pytest.mark.parametrize("variables", [{}, {"POSTGRES_PASSWORD": ""}], ids=["unset", "empty"])
@pytest.mark.parametrize("files", COMBINATIONS.values(), ids=COMBINATIONS)
def test_without_a_password_nothing_starts_and_a_sentence_says_why(files, variables):
    with pytest.raises(compose.VariableError) as refused:
        compose.read(*files, variables=variables)

    assert str(refused.value) == (
        "required variable POSTGRES_PASSWORD is missing a value: "
        "Set it in the file .env (see deploy/env.example); there is no default."
    )


def test_the_example_of_env_as_it_comes_is_refused():
    with pytest.raises(compose.VariableError):
        compose.read(compose.BASE, variables=dotenv(DEPLOY / "env.example"))


def test_every_variable_in_the_example_of_env_is_one_that_is_read():
    text = "".join(path.read_text() for path in (compose.BASE, *compose.OVERRIDES.values()))
    mentioned = dotenv(DEPLOY / "env.example", commented=True)

    unknown = [
        name
        for name in mentioned
        if name != "COMPOSE_FILE" and f"${{{name}" not in text and name.removeprefix("ABO_").lower() not in fields()
    ]

    assert len(mentioned) > 8
    assert unknown == []


def test_a_password_with_every_special_character_arrives_as_it_is():
    password = "a$b${c}%20:/@'\"\\ é"  # noqa: S105 - of nothing

    services = compose.read(compose.BASE, variables={"POSTGRES_PASSWORD": password})["services"]

    assert services["postgres"]["environment"]["POSTGRES_PASSWORD"] == password
    assert {services[name]["environment"]["PGPASSWORD"] for name in APPLICATION - {"worker"}} == {password}


def test_the_password_is_given_to_those_who_need_it_in_one_variable_and_stands_in_no_file(services):
    holders = {
        (name, variable)
        for name, service in services.items()
        for variable, value in compose.environment(service).items()
        if PASSWORD["POSTGRES_PASSWORD"] in value
    }

    files = [compose.BASE, *compose.OVERRIDES.values(), dockerfile.DOCKERFILE, *DEPLOY.iterdir()]
    expected = {(name, "PGPASSWORD") for name in APPLICATION & services.keys()}
    assert holders == expected | {("postgres", "POSTGRES_PASSWORD")}
    assert [path for path in files if PASSWORD["POSTGRES_PASSWORD"] in path.read_text()] == []


def test_every_service_is_checked_and_restarted_and_one_that_ends_is_not(services):
    checked = {name for name, service in services.items() if "healthcheck" in service}
    restarted = {name for name, service in services.items() if service["restart"] == "unless-stopped"}

    assert checked == restarted == services.keys() - ONCE
    assert {name: services[name]["restart"] for name in ONCE} == {"migrate": "on-failure:5"}
    for name in checked:
        check = services[name]["healthcheck"]
        assert check.keys() == {"test", "interval", "timeout", "retries", "start_period"}, name
        assert seconds(check["timeout"]) <= seconds(check["interval"]), name


def test_no_service_is_root_or_can_become_it(services):
    for name, service in services.items():
        assert service["user"] in ("10001:10001", "postgres", "redis"), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name


def test_only_this_machine_reaches_the_published_ports(services):
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}

    assert published == {"webserver": ["127.0.0.1:3000:3000"], "reports": ["127.0.0.1:3001:8080"]}


def test_what_must_outlive_a_container_is_on_a_named_volume_or_is_not_written_to():
    file = compose.read(*COMBINATIONS["celery"], variables=PASSWORD)

    mounts = {name: sorted(service.get("volumes", ())) for name, service in file["services"].items()}

    application = ["archives:/archives:ro", "runs:/opt/dagster/storage", "state:/data"]
    assert mounts == dict.fromkeys(APPLICATION, application) | {
        "postgres": ["postgres:/home/postgres/pgdata/data"],
        "reports": ["state:/data:ro"],
        "redis": ["queue:/data"],
    }
    assert file["volumes"].keys() == {"archives", "runs", "state", "postgres", "queue"}


def test_a_folder_of_the_machine_can_take_the_place_of_the_empty_volume_of_archives():
    services = compose.read(compose.BASE, variables=PASSWORD | {"ARCHIVES": "/srv/abo"})["services"]

    assert "/srv/abo:/archives:ro" in services["code"]["volumes"]


def test_images_are_pinned(services):
    named = {name: service["image"] for name, service in services.items() if "build" not in service}

    assert named.pop("postgres") == "timescale/timescaledb-ha:pg18.6-ts2.30.2"
    assert named.pop("redis", "redis:7.4.2-alpine") == "redis:7.4.2-alpine"
    assert named == {}


@pytest.mark.parametrize("name", ["alone", "gpu", "celery"])
def test_services_of_the_pipeline_s_own_are_of_one_image(name):
    services = compose.read(*COMBINATIONS[name], variables=PASSWORD)["services"]
    built = {(service["image"], str(service["build"])) for service in services.values() if "build" in service}

    assert len(built) == 1


def test_memory_shared_by_the_processes_that_build_an_index_is_enough_for_it():
    services = compose.read(compose.BASE, variables=PASSWORD)["services"]

    assert services["postgres"]["shm_size"] == "2gb"
    assert Settings.read().index_memory_mb <= 2 * 1024


def test_a_gpu_is_for_the_service_that_embeds():
    services = compose.read(*COMBINATIONS["gpu"], variables=PASSWORD)["services"]

    devices = {
        name: service["deploy"]["resources"]["reservations"]["devices"]
        for name, service in services.items()
        if "deploy" in service
    }
    assert devices == {"code": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]}
    assert services["code"]["build"] == {
        "context": ".",
        "args": {"TORCH_INDEX": "https://pypi.org/simple", "EXTRAS": "celery,gpu"},
    }
    assert services["code"]["command"] == compose.read(compose.BASE, variables=PASSWORD)["services"]["code"]["command"]


def test_a_worker_has_what_the_code_server_has():
    services = compose.read(*COMBINATIONS["celery"], variables=PASSWORD)["services"]
    same = ("image", "build", "user", "init", "environment", "env_file", "volumes", "configs", "logging")

    assert {key: services["worker"][key] for key in same} == {key: services["code"][key] for key in same}


def test_a_worker_s_command_is_the_one_that_is_tested_with_a_queue():
    services = compose.read(*COMBINATIONS["celery"], variables=PASSWORD)["services"]

    assert services["worker"]["command"] == ["celery", *celery_workers.COMMAND]


def test_with_workers_all_that_has_an_instance_has_the_same_one():
    file = compose.read(*COMBINATIONS["celery"], variables=PASSWORD)

    mounted = {name: service["configs"] for name, service in file["services"].items() if name in APPLICATION}
    expected = [{"source": "dagster", "target": "/opt/dagster/dagster.yaml"}]
    assert mounted == dict.fromkeys(APPLICATION, expected)
    assert {compose.environment(file["services"][name])["ABO_CELERY_BROKER"] for name in APPLICATION} == {
        "redis://redis:6379/0"
    }


def test_every_file_that_is_mounted_is_there():
    for files in COMBINATIONS.values():
        file = compose.read(*files, variables=PASSWORD)
        used = {entry["source"] for service in file["services"].values() for entry in service.get("configs", ())}

        assert used == file["configs"].keys()
        assert all((PROJECT_ROOT / entry["file"]).is_file() for entry in file["configs"].values())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("$SET and ${SET}", "yes and yes"),
        ("[${EMPTY}] [${MISSING}]", "[] []"),
        ("${MISSING:-word} ${EMPTY:-word} ${SET:-word}", "word word yes"),
        ("${MISSING-word} [${EMPTY-word}]", "word []"),
        ("${SET:+word} [${EMPTY:+word}] ${EMPTY+word}", "word [] word"),
        ("${SET:?sentence} [${EMPTY?sentence}]", "yes []"),
        ("$$HOME $${HOME}", "$HOME ${HOME}"),
        ("$DOLLARS", "$SET ${SET} $$"),
    ],
)
def test_variables_are_filled_in_as_compose_does_it(text, value):
    variables = {"SET": "yes", "EMPTY": "", "DOLLARS": "$SET ${SET} $$"}

    assert compose.substitute(text, variables) == value


def test_the_image_is_made_of_files_that_are_there_and_reach_the_builder():
    sources = {
        source
        for each in dockerfile.instructions()
        if each.name == "COPY" and each.words == each.arguments
        for source in each.words[:-1]
    }

    assert sources == {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "abo_pipeline",
        "deploy/dagster.yaml",
        "deploy/workspace.yaml",
    }
    assert all((PROJECT_ROOT / source).exists() for source in sources)
    assert [source for source in sources if not reaches_the_builder(source)] == []


@pytest.mark.parametrize("secret", [".env", ".git/config", ".state/settings.json", "abo_pipeline/__pycache__/x.pyc"])
def test_what_is_private_does_not_reach_the_builder(secret):
    assert not reaches_the_builder(secret)


def test_the_password_s_file_is_not_for_git():
    assert ".env" in (PROJECT_ROOT / ".gitignore").read_text().splitlines()


def test_the_image_runs_as_the_user_of_the_compose_file_who_owns_its_volumes():
    (user,) = [each.words for each in dockerfile.final_stage() if each.name == "USER"]
    services = compose.read(compose.BASE, variables=PASSWORD)["services"]
    mounted = {mount.split(":")[1] for mount in services["code"]["volumes"]}

    assert user == ("10001:10001",) == (services["code"]["user"],)
    assert mounted <= set(dockerfile.folders())


def test_the_image_has_the_python_and_the_extras_that_the_project_names():
    bases = {each.arguments[0] for each in dockerfile.instructions() if each.name == "FROM"}
    installs = [each.words for each in dockerfile.instructions() if ".[${EXTRAS}]" in each.words]
    defaults = [each.words for each in dockerfile.instructions() if each.name == "ARG"]

    assert ("EXTRAS=celery",) in defaults
    assert bases == {"python:3.11-slim-bookworm"}
    (install,) = installs
    assert install[install.index("--constraint") + 1] == "constraints.txt"


@pytest.mark.parametrize("name", ["dagster.yaml", "deploy/dagster.yaml"])
def test_an_instance_is_what_its_file_means(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"sqlite:///{tmp_path}/unused")
    home = tmp_path / "home"
    home.mkdir()
    configured = yaml.safe_load((PROJECT_ROOT / name).read_text())
    configured.pop("storage", None)  # of the server's: for test_composition
    (home / "dagster.yaml").write_text(yaml.safe_dump(configured))

    with dg.DagsterInstance.from_config(str(home)) as instance:
        concurrency = instance.get_concurrency_config()
        assert concurrency.pool_config.pool_granularity is PoolGranularity.RUN
        assert concurrency.pool_config.default_pool_limit == 1
        assert isinstance(concurrency.run_queue_config, RunQueueConfig)
        assert concurrency.run_queue_config.max_concurrent_runs == 4
        assert concurrency.run_queue_config.max_user_code_failure_retries == 10
        assert instance.run_coordinator.dequeue_interval_seconds == 1
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_start_timeout_seconds == 180
        assert instance.run_monitoring_settings["free_slots_after_run_end_seconds"] == 60
        assert (instance.run_retries_enabled, instance.run_retries_max_retries) == (True, 2)
        assert not instance.run_retries_retry_on_asset_or_op_failure
        assert not instance.telemetry_enabled
        assert not instance.nux_enabled
        assert instance.get_settings("backfills") == {"use_threads": True, "num_workers": 2}
        assert instance.get_settings("schedules")["use_threads"]
        assert instance.get_settings("sensors")["use_threads"]


def test_the_server_s_instance_names_the_driver_that_dagster_s_storage_needs():
    services = compose.read(compose.BASE, variables=PASSWORD)["services"]

    urls = {compose.environment(services[name])["DAGSTER_POSTGRES_URL"] for name in APPLICATION - {"worker"}}
    assert urls == {"postgresql+psycopg2://abo@postgres:5432/dagster"}
    assert yaml.safe_load((DEPLOY / "dagster.yaml").read_text())["storage"] == {
        "postgres": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}
    }


def test_webserver_and_daemon_look_for_the_code_where_it_is_served():
    services = compose.read(compose.BASE, variables=PASSWORD)["services"]
    workspace = yaml.safe_load((DEPLOY / "workspace.yaml").read_text())

    assert workspace == {
        "load_from": [{"grpc_server": {"host": "code", "port": 4000, "location_name": "abo_pipeline"}}]
    }
    assert "--port 4000" in services["code"]["command"][-1]


def fields() -> dict[str, FieldInfo]:
    return dict(Settings.model_fields)


def seconds(duration: str) -> int:
    """``90s``, ``2m``."""
    return int(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def dotenv(path: Path, *, commented: bool = False) -> dict[str, str]:
    """The variables of a file like .env; also those that are commented out, if asked for."""
    lines = path.read_text().splitlines()
    if commented:
        lines = [line.removeprefix("#") for line in lines]
    pairs = [line.split("=", 1) for line in lines if "=" in line and line.split("=", 1)[0].isidentifier()]
    return {name: value.strip("'") for name, value in pairs}


def reaches_the_builder(path: str) -> bool:
    """Whether .dockerignore lets a path through: of the rules that fit it or a folder above, the last one counts."""
    chosen = True
    parts = Path(path).parts
    candidates = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
    for line in (PROJECT_ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!")
        if pattern.startswith("**/"):
            fits = any(fnmatch.fnmatch(part, pattern[3:]) for part in parts)
        else:
            fits = any(fnmatch.fnmatch(each, pattern) for each in candidates)
        if fits:
            chosen = rule.startswith("!")
    return chosen
