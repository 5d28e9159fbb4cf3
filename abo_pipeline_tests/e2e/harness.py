"""Dagster as its users run it: webserver and daemon as processes on a home of their own, spoken to over GraphQL.

``running_dagster`` starts both and stops them, whatever happens in between. ``Client`` speaks to any webserver,
``Process`` is a program with a log, and ``wait_until`` polls with a deadline; all three also serve without the first.
What is expected of the pipeline is for the tests.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import psutil
import requests
import yaml

from abo_pipeline.settings import PROJECT_ROOT

ASSET_JOB = "__ASSET_JOB"
RUN_ENDED = frozenset({"SUCCESS", "FAILURE", "CANCELED"})
BACKFILL_ENDED = frozenset({"COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"})

# The backfill daemon looks every 30 s, and no setting says otherwise: the number is read from this module at each turn.
_DAEMON = """
import sys
import dagster._daemon.controller as controller
controller.DEFAULT_DAEMON_INTERVAL_SECONDS = float(sys.argv.pop(1))
from dagster._daemon.cli import cli
cli()
"""

# What `abo dev` does before it starts the two.
_CREATE_INSTANCE = """
from abo_pipeline.runner import dagster_instance
from abo_pipeline.settings import Settings
with dagster_instance(Settings.last()):
    pass
"""

T = TypeVar("T")


class GraphQLError(RuntimeError):
    """Dagster refused a request; the message is Dagster's."""


def wait_until(
    condition: Callable[[], T],
    what: str,
    seconds: float = 180,
    *,
    interval: float = 0.2,
    details: Callable[[], str] = str,
) -> T:
    """Poll until the condition gives something true, and give that.

    Args:
        condition: called again and again.
        what: is waited for, for the message.
        seconds: until it is given up; generous, since it only counts when something is wrong.
        interval: between two calls.
        details: added to the message.

    Raises:
        TimeoutError: it did not come true in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain for: {what}\n{details()}")
        time.sleep(interval)


def free_port() -> int:
    """A TCP port of this machine on which nobody listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def script(name: str) -> str:
    """The path of a program of this environment, such as ``dagster-webserver``."""
    return str(Path(sys.executable).with_name(name))


def child_environment(*layers: Mapping[str, str]) -> dict[str, str]:
    """This process's variables without those that are the pipeline's or Dagster's, and what is given on top."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("ABO_", "DAGSTER_"))}
    return own | {name: value for layer in layers for name, value in layer.items()}


class Process:
    """A program in a session of its own, with its output in a log.

    Attributes:
        pid: of the program, and of its process group.
        log: what it printed.
    """

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], log: Path, cwd: Path) -> None:
        self.command = command
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                list(command),
                env=dict(environment),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    @property
    def running(self) -> bool:
        """Whether the program itself has not ended."""
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._popen.poll()

    def tail(self, lines: int = 40) -> str:
        """The end of its log, with the command above it."""
        text = self.log.read_text(errors="replace").splitlines()[-lines:]
        state = "running" if self.running else f"ended with {self.exit_code}"
        return "\n".join([f"--- {' '.join(self.command)[:200]} ({state}), {self.log}", *text])

    def kill(self) -> None:
        """End the program alone at once, as the system does when memory runs out; its children live on."""
        self._popen.kill()
        self._popen.wait()

    def kill_group(self) -> None:
        """End it and all its children at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def stop(self, seconds: float = 15) -> None:
        """Ask it to end, as Ctrl-C does; end what is left of its group afterwards."""
        if self.running:
            self._popen.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(seconds)
        self.kill_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True)
class Run:
    """A run as Dagster shows it."""

    id: str
    job: str
    status: str
    tags: Mapping[str, str]
    assets: tuple[str, ...]
    started: float | None
    ended: float | None

    @property
    def partition(self) -> str | None:
        """The partition that it is for."""
        return self.tags.get("dagster/partition")


@dataclass(frozen=True)
class Backfill:
    """A backfill as Dagster shows it; its runs in the order in which they were made."""

    id: str
    status: str
    error: str | None
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class CheckExecution:
    """One execution of an asset check."""

    asset: str
    name: str
    partition: str | None
    status: str
    severity: str | None
    description: str | None


@dataclass(frozen=True)
class Tick:
    """What a schedule asks for when it is evaluated: run requests as (run key, tags), or why there are none."""

    requests: tuple[tuple[str | None, Mapping[str, str]], ...]
    skip_reason: str | None


_RUN = "runId jobName status startTime endTime tags { key value } assetSelection { path }"
_PYTHON_ERROR = "... on PythonError { message stack }"
_ERROR = f"__typename ... on Error {{ message }} {_PYTHON_ERROR}"


class Client:
    """What the buttons of Dagster's UI do, for one webserver with one code location."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = requests.Session()
        self._repository: dict[str, str] | None = None

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """Ask anything.

        Raises:
            GraphQLError: the request was refused, with what was said.
            requests.RequestException: nobody answered.
        """
        response = self._session.post(f"{self.url}/graphql", json={"query": text, "variables": variables}, timeout=60)
        try:
            answer = response.json()
        except requests.JSONDecodeError:
            raise GraphQLError(f"{response.status_code}: {response.text[:2000]}") from None
        if errors := answer.get("errors"):
            raise GraphQLError("; ".join(error["message"] for error in errors))
        return dict(answer["data"])

    def launch_run(
        self,
        job: str = ASSET_JOB,
        *,
        assets: Sequence[str] = (),
        partition: str | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Launch a run of a job, or of some assets; its id.

        Raises:
            GraphQLError: the launch was refused.
        """
        selector = self._selector() | {"pipelineName": job}
        if assets:
            selector["assetSelection"] = _keys(assets)
        all_tags = dict(tags or {}) | ({"dagster/partition": partition} if partition else {})
        answer = self._mutate(
            "launchPipelineExecution",
            "ExecutionParams!",
            "executionParams",
            "... on LaunchRunSuccess { run { runId } } ... on RunConfigValidationInvalid { errors { message } }",
            {
                "selector": selector,
                "runConfigData": json.dumps(config or {}),
                "mode": "default",
                "executionMetadata": {"tags": _tags(all_tags)},
            },
        )
        return str(answer["run"]["runId"])

    def launch_backfill(
        self,
        assets: Sequence[str],
        partitions: Sequence[str] | Literal["all"] = "all",
        *,
        config: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Launch a backfill of assets, partitioned or not; its id.

        Raises:
            GraphQLError: the launch was refused.
        """
        parameters: dict[str, Any] = {"assetSelection": _keys(assets), "tags": _tags(tags or {})}
        parameters |= {"allPartitions": True} if partitions == "all" else {"partitionNames": list(partitions)}
        if config is not None:
            parameters["runConfigData"] = json.dumps(config)
        answer = self._mutate(
            "launchPartitionBackfill",
            "LaunchBackfillParams!",
            "backfillParams",
            "... on LaunchBackfillSuccess { backfillId }",
            parameters,
        )
        return str(answer["backfillId"])

    def run(self, run_id: str) -> Run:
        """A run as it is now."""
        answer = self.query(
            f"query($id: ID!) {{ runOrError(runId: $id) {{ {_ERROR} ... on Run {{ {_RUN} }} }} }}", id=run_id
        )
        return _run(_unless_error(answer["runOrError"]))

    def runs(self, limit: int = 1000) -> list[Run]:
        """Every run, in the order in which they were made."""
        answer = self.query(
            f"query($n: Int!) {{ runsOrError(limit: $n) {{ {_ERROR} ... on Runs {{ results {{ {_RUN} }} }} }} }}",
            n=limit,
        )
        return [_run(found) for found in reversed(_unless_error(answer["runsOrError"])["results"])]

    def messages(self, run_id: str) -> list[str]:
        """What a run has logged so far, errors with their reasons."""
        text = (
            "query($id: ID!, $after: String) { logsForRun(runId: $id, afterCursor: $after) { "
            f"{_ERROR} ... on EventConnection {{ cursor hasMore events {{ "
            "... on MessageEvent { message } ... on ErrorEvent { error { message causes { message } } } } } } }"
        )
        messages: list[str] = []
        after = None
        while True:
            page = _unless_error(self.query(text, id=run_id, after=after)["logsForRun"])
            for event in page["events"]:
                error = event.get("error") or {}
                causes = [cause["message"] for cause in error.get("causes", ())]
                messages.append(" ".join(filter(None, [event.get("message"), error.get("message"), *causes])))
            if not page["hasMore"]:
                return messages
            after = page["cursor"]

    def pid(self, run_id: str) -> int | None:
        """The process that executes a run; None if it has not been started yet."""
        found = [re.fullmatch(r"Started process for run \(pid: (\d+)\)\.", line) for line in self.messages(run_id)]
        return next((int(match[1]) for match in found if match), None)

    def output(self, run_id: str) -> dict[str, Any]:
        """The metadata of a run's op outputs, as plain values; a table as a list of rows."""
        text = (
            f"query($id: ID!) {{ logsForRun(runId: $id) {{ {_ERROR} ... on EventConnection {{ events {{ "
            "... on ExecutionStepOutputEvent { metadataEntries { label ... on IntMetadataEntry { intValue } "
            "... on MarkdownMetadataEntry { mdStr } ... on TableMetadataEntry { table { records } } } } } } } }"
        )
        events = _unless_error(self.query(text, id=run_id)["logsForRun"])["events"]
        entries = [entry for event in events for entry in event.get("metadataEntries", ())]
        return {
            entry["label"]: [json.loads(record) for record in entry["table"]["records"]]
            if "table" in entry
            else entry.get("intValue", entry.get("mdStr"))
            for entry in entries
        }

    def default_config(self, job: str) -> dict[str, Any]:
        """What the launchpad opens with."""
        answer = self.query(
            "query($s: PipelineSelector!) { runConfigSchemaOrError(selector: $s) { "
            f"{_ERROR} ... on RunConfigSchema {{ rootDefaultYaml }} }} }}",
            s=self._selector() | {"pipelineName": job},
        )
        return dict(yaml.safe_load(_unless_error(answer["runConfigSchemaOrError"])["rootDefaultYaml"]))

    def backfill(self, backfill_id: str) -> Backfill:
        """A backfill as it is now."""
        answer = self.query(
            "query($id: String!) { partitionBackfillOrError(backfillId: $id) { "
            f"{_ERROR} ... on PartitionBackfill {{ id status error {{ message }} "
            f"runs(limit: 1000) {{ {_RUN} }} }} }} }}",
            id=backfill_id,
        )
        found = _unless_error(answer["partitionBackfillOrError"])
        return Backfill(
            id=found["id"],
            status=found["status"],
            error=found["error"] and found["error"]["message"],
            runs=tuple(_run(each) for each in reversed(found["runs"])),
        )

    def checks(self, asset: str) -> list[str]:
        """The names of an asset's checks."""
        node = self._node(asset, "assetChecksOrError { ... on AssetChecks { checks { name } } }")
        return [check["name"] for check in node["assetChecksOrError"].get("checks", ())]

    def check_executions(self, asset: str, limit: int = 1000) -> list[CheckExecution]:
        """Every execution of every check of an asset, the latest first within a check."""
        found = []
        for check in self.checks(asset):
            answer = self.query(
                "query($asset: AssetKeyInput!, $check: String!, $n: Int!) { "
                "assetCheckExecutions(assetKey: $asset, checkName: $check, limit: $n) "
                "{ status partition evaluation { severity description } } }",
                asset={"path": [asset]},
                check=check,
                n=limit,
            )
            for execution in answer["assetCheckExecutions"]:
                evaluation = execution["evaluation"] or {}
                found.append(
                    CheckExecution(
                        asset,
                        check,
                        execution["partition"],
                        execution["status"],
                        evaluation.get("severity"),
                        evaluation.get("description"),
                    )
                )
        return found

    def assets(self) -> list[str]:
        """The names of every asset of the code location."""
        answer = self.query("{ assetNodes { assetKey { path } } }")
        return sorted("/".join(node["assetKey"]["path"]) for node in answer["assetNodes"])

    def partitions(self, asset: str) -> list[str]:
        """The partitions of an asset, in their order."""
        return list(self._node(asset, "partitionKeys")["partitionKeys"])

    def schedules(self) -> list[str]:
        """The names of every schedule of the code location."""
        answer = self.query(
            "query($s: RepositorySelector!) { schedulesOrError(repositorySelector: $s) { "
            f"{_ERROR} ... on Schedules {{ results {{ name }} }} }} }}",
            s=self._selector(),
        )
        return sorted(schedule["name"] for schedule in _unless_error(answer["schedulesOrError"])["results"])

    def dry_run_schedule(self, name: str, at: float | None = None) -> Tick:
        """What a schedule would ask for at a time, now by default.

        Raises:
            GraphQLError: there is no such schedule, or it failed.
        """
        answer = self.query(
            "mutation($s: ScheduleSelector!, $at: Float) { scheduleDryRun(selectorData: $s, timestamp: $at) { "
            f"{_ERROR} ... on DryRunInstigationTick {{ evaluationResult {{ skipReason error {{ message }} "
            "runRequests { runKey tags { key value } } } } } }",
            s=self._selector() | {"scheduleName": name},
            at=time.time() if at is None else at,
        )
        result = _unless_error(answer["scheduleDryRun"])["evaluationResult"]
        if result["error"]:
            raise GraphQLError(result["error"]["message"])
        requested = result["runRequests"] or ()
        return Tick(
            requests=tuple((request["runKey"], _plain(request["tags"])) for request in requested),
            skip_reason=result["skipReason"],
        )

    def wait_for_run(self, run_id: str, seconds: float = 300) -> Run:
        """A run once it has ended, however it has.

        Raises:
            TimeoutError: it did not end in time; the message has its last words.
        """

        def ended() -> Run | None:
            run = self.run(run_id)
            return run if run.status in RUN_ENDED else None

        def details() -> str:
            return f"{self.run(run_id)}\n" + "\n".join(self.messages(run_id)[-10:]) + self.tails()

        return wait_until(ended, f"the end of run {run_id}", seconds, details=details)

    def wait_for_backfill(self, backfill_id: str, seconds: float = 600) -> Backfill:
        """A backfill once it has ended, however it has.

        Raises:
            TimeoutError: it did not end in time; the message has what came of its runs.
        """

        def ended() -> Backfill | None:
            backfill = self.backfill(backfill_id)
            return backfill if backfill.status in BACKFILL_ENDED else None

        def details() -> str:
            backfill = self.backfill(backfill_id)
            runs = "\n".join(f"{run.status} {run.assets} {run.partition or ''}" for run in backfill.runs)
            return f"{backfill.status} {backfill.error or ''}\n{runs}\n{self.tails()}"

        return wait_until(ended, f"the end of backfill {backfill_id}", seconds, interval=0.5, details=details)

    def wait_until_loaded(self, seconds: float = 180) -> None:
        """Wait until the webserver answers and its code location is there.

        Raises:
            GraphQLError: the code location cannot be loaded, with the reason.
            TimeoutError: it did not come up in time.
        """

        def loaded() -> bool:
            try:
                answer = self.query(
                    f"{{ workspaceOrError {{ {_ERROR} ... on Workspace {{ locationEntries {{ name loadStatus "
                    f"locationOrLoadError {{ __typename {_PYTHON_ERROR} }} }} }} }} }}"
                )
            except requests.RequestException:
                return False
            (entry,) = _unless_error(answer["workspaceOrError"])["locationEntries"]
            if entry["loadStatus"] != "LOADED":
                return False
            _unless_error(entry["locationOrLoadError"])
            return True

        wait_until(loaded, "a webserver that has loaded the code location", seconds, details=self.tails)

    def wait_until_daemons_are_healthy(self, seconds: float = 180) -> None:
        """Wait for a sign of life of every daemon that the instance asks for, not older than this call.

        Raises:
            TimeoutError: one is missing.
        """
        # Whole seconds are enough for a time, and a daemon that was killed has left signs that are older.
        since = time.time() - 1

        def statuses() -> list[dict[str, Any]]:
            answer = self.query(
                "{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy lastHeartbeatTime } } } }"
            )
            return list(answer["instance"]["daemonHealth"]["allDaemonStatuses"])

        def healthy() -> bool:
            return all(
                status["healthy"] and (status["lastHeartbeatTime"] or 0) >= since
                for status in statuses()
                if status["required"]
            )

        wait_until(healthy, "healthy daemons", seconds, details=lambda: f"{statuses()}\n{self.tails()}")

    def tails(self) -> str:
        """Log ends for messages of things that did not come; of a server that somebody else runs there are none."""
        return ""

    def _selector(self) -> dict[str, Any]:
        """The one repository that is served."""
        if self._repository is None:
            answer = self.query(
                f"{{ repositoriesOrError {{ {_ERROR} ... on RepositoryConnection "
                "{ nodes { name location { name } } } } }"
            )
            (node,) = _unless_error(answer["repositoriesOrError"])["nodes"]
            self._repository = {"repositoryName": node["name"], "repositoryLocationName": node["location"]["name"]}
        return dict(self._repository)

    def _node(self, asset: str, fields: str) -> dict[str, Any]:
        answer = self.query(
            f"query($keys: [AssetKeyInput!]) {{ assetNodes(assetKeys: $keys) {{ {fields} }} }}", keys=_keys([asset])
        )
        if not answer["assetNodes"]:
            raise GraphQLError(f"there is no asset {asset}")
        return dict(answer["assetNodes"][0])

    def _mutate(self, name: str, kind: str, argument: str, fields: str, parameters: dict[str, Any]) -> dict[str, Any]:
        answer = self.query(f"mutation($p: {kind}) {{ {name}({argument}: $p) {{ {_ERROR} {fields} }} }}", p=parameters)
        return _unless_error(answer[name])


class RunningDagster(Client):
    """A webserver and a daemon on one home, and what its users do with them.

    Attributes:
        home: the DAGSTER_HOME.
        environment: all variables of the processes.
        webserver, daemon: the processes, None while they do not run.
    """

    def __init__(self, home: Path, environment: Mapping[str, str], workspace: Path, interval: float) -> None:
        self._port = free_port()
        super().__init__(f"http://127.0.0.1:{self._port}")
        self.home = home
        self.environment = child_environment(
            {"DAGSTER_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}, environment, {"DAGSTER_HOME": str(home)}
        )
        self.workspace = workspace
        self.interval = interval
        self.webserver: Process | None = None
        self.daemon: Process | None = None

    def start(self, name: str, command: Sequence[str]) -> Process:
        """Start a program on this home; it ends with the others.

        Args:
            name: of its log.
            command: its words.
        """
        # Its working directory is one in which nothing lies that could be imported by mistake.
        return Process(command, environment=self.environment, log=self.home / "logs" / f"{name}.log", cwd=self.home)

    def start_webserver(self) -> None:
        """Start the webserver, and wait until it has loaded the code location."""
        address = ["--host", "127.0.0.1", "--port", str(self._port)]
        self.webserver = self.start(
            "webserver", [script("dagster-webserver"), "--workspace", str(self.workspace), *address]
        )
        self._wait(self.wait_until_loaded, self.webserver)

    def start_daemon(self, *, wait: bool = True) -> None:
        """Start the daemon; by default wait until every part of it is healthy, which only a webserver can tell."""
        program = [sys.executable, "-c", _DAEMON, str(self.interval)]
        self.daemon = self.start("daemon", [*program, "run", "--workspace", str(self.workspace)])
        if wait and self.webserver:
            self._wait(self.wait_until_daemons_are_healthy, self.daemon)

    def stop(self) -> None:
        """Stop both, and whatever else runs on this home."""
        for process in (self.daemon, self.webserver):
            if process:
                process.stop()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """Every process that was started on this home: also of code servers and runs whose parents were killed."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("DAGSTER_HOME") == str(self.home) and process.pid != os.getpid():
                    found.append(process)
        return found

    def tails(self) -> str:
        """The ends of both logs."""
        return "\n".join(process.tail() for process in (self.webserver, self.daemon) if process)

    def _wait(self, ready: Callable[[], None], process: Process) -> None:
        try:
            ready()
        except (TimeoutError, GraphQLError) as error:
            raise RuntimeError(f"{error}\n{process.tail()}") from error


@contextlib.contextmanager
def running_dagster(
    home: Path,
    environment: Mapping[str, str],
    *,
    configuration: Path | None = None,
    workspace: Path = PROJECT_ROOT / "workspace.yaml",
    daemon: bool = True,
    webserver: bool = True,
    interval: float = 1,
) -> Iterator[RunningDagster]:
    """Webserver and daemon on a home, ready to be used; stopped at the end with everything that they started.

    Args:
        home: becomes the DAGSTER_HOME; may hold the records of an earlier one.
        environment: variables of the processes, such as ABO_…; no such variable of this process reaches them.
        configuration: copied to the home as its dagster.yaml; by default the laptop's.
        workspace: what code to load.
        daemon: start one.
        webserver: start one; without it the client has nobody to speak to.
        interval: seconds between two looks of the backfill daemon, whose own default is 30.

    Raises:
        RuntimeError: one of them did not come up; the message has the end of its log.
    """
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(configuration or PROJECT_ROOT / "dagster.yaml", home / "dagster.yaml")
    dagster = RunningDagster(home, environment, workspace, interval)
    try:
        create_instance(dagster.environment)
        if webserver:
            dagster.start_webserver()
        if daemon:
            dagster.start_daemon()
        yield dagster
    finally:
        dagster.stop()


def create_instance(environment: Mapping[str, str]) -> None:
    """Make the instance's storage: webserver and daemon would otherwise both do so at once, and trip over each other.

    Raises:
        RuntimeError: it cannot be made, with the reason.
    """
    made = subprocess.run(
        [sys.executable, "-c", _CREATE_INSTANCE],
        env=dict(environment),
        cwd=environment["DAGSTER_HOME"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if made.returncode:
        raise RuntimeError(f"Dagster's instance cannot be made:\n{made.stderr}")


def _keys(assets: Sequence[str]) -> list[dict[str, list[str]]]:
    return [{"path": asset.split("/")} for asset in assets]


def _tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _plain(tags: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in tags}


def _run(found: Mapping[str, Any]) -> Run:
    return Run(
        id=found["runId"],
        job=found["jobName"],
        status=found["status"],
        tags=_plain(found["tags"]),
        assets=tuple("/".join(key["path"]) for key in found["assetSelection"] or ()),
        started=found["startTime"],
        ended=found["endTime"],
    )


def _unless_error(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, unless it is one of the errors that Dagster gives as an answer."""
    problems = [answer["message"]] if "message" in answer else []
    problems += [error["message"] for error in answer.get("errors") or ()]
    problems += answer.get("stack", ())[-3:]
    if problems or answer["__typename"].endswith(("Error", "Invalid", "Conflict")):
        raise GraphQLError(": ".join([answer["__typename"], "\n".join(problems)]))
    return answer
