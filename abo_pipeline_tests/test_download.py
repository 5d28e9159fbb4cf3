"""Downloads from a real server in this process, which cuts, lies, and remembers what it was asked."""

import hashlib
import io
import json
import logging
import os
import resource
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.registry import known_implementations

from abo_pipeline.download import FetchedArchive, fetch, fetched_stamp, remote_stamp
from abo_pipeline.errors import ArchiveError
from abo_pipeline.storage import public_url

KIB = 1024
CONTENT = hashlib.shake_128(b"archive").digest(300 * KIB + 123)
OTHER = hashlib.shake_128(b"another").digest(300 * KIB + 45)
NAME = "abo-images-small.tar"


@dataclass
class Answer:
    """How one request is answered; the default is how a good server does it."""

    status: int = 0
    cut_after: int | None = None
    ignores_range: bool = False
    ignores_if_range: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    silent: bool = False
    slow: bool = False


@dataclass
class Remote:
    """A file on a server: what it holds, how the next requests are answered, and what has been asked."""

    content: bytes = CONTENT
    etag: str = '"one"'
    answers: list[Answer] = field(default_factory=list)
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)
    authorization: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    heads: int = 0
    port: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/archives/{NAME}"


def handler_of(remote: Remote) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = remote.answers.pop(0) if remote.answers else Answer()
            wanted, condition = self.headers["Range"], self.headers["If-Range"]
            remote.asked.append((wanted, condition))
            remote.authorization.append(self.headers["Authorization"])
            remote.paths.append(self.path)
            if answer.silent:
                remote.over.wait(10)
                return
            if answer.slow:
                remote.over.wait(0.5)
            ranged = wanted and not answer.ignores_range
            if ranged and condition not in (None, remote.etag) and not answer.ignores_if_range:
                ranged = False
            self.reply(answer, int(wanted.removeprefix("bytes=").partition("-")[0]) if ranged else None)

        def do_HEAD(self):
            remote.heads += 1
            self.reply(remote.answers.pop(0) if remote.answers else Answer(), None)

        def reply(self, answer, start):
            total = len(remote.content)
            headers = {"ETag": remote.etag}
            body = b""
            if answer.status:
                status = answer.status
            elif start is None:
                status, body = 200, remote.content
            elif start >= total:
                status = 416
                headers["Content-Range"] = f"bytes */{total}"
            else:
                status, body = 206, remote.content[start:]
                headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            headers = {**headers, "Content-Length": str(len(body)), **answer.headers}
            self.send_response(status)
            for name, value in headers.items():
                if name not in answer.without:
                    self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: answer.cut_after])

        def log_message(self, *_):
            pass

    return Handler


@pytest.fixture
def remote() -> Iterator[Remote]:
    remote = Remote()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(remote))
    remote.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield remote
    remote.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """The pauses that were asked for, in seconds; none is made."""
    asked: list[float] = []
    monkeypatch.setattr("abo_pipeline.download.time.sleep", asked.append)
    return asked


def refusal(*arguments, **options) -> str:
    with pytest.raises(ArchiveError) as caught:
        fetch(*arguments, **options)
    return str(caught.value)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def left_in(folder: Path) -> list[str]:
    # Some versions of filelock leave the lock's empty file behind.
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# --- A whole download ---


def test_a_url_is_downloaded_whole_and_noted(remote, tmp_path):
    folder = tmp_path / "new" / "folder"

    fetched = fetch(remote.url, folder)

    path = folder / NAME
    assert fetched == FetchedArchive(path, len(CONTENT), sha256(CONTENT), remote.url, fetched=True)
    assert path.read_bytes() == CONTENT
    assert json.loads((folder / f"{NAME}.json").read_text()) == {
        "source": remote.url,
        "etag": '"one"',
        "last_modified": None,
        "archive": NAME,
        "bytes": len(CONTENT),
        "mtime_ns": path.stat().st_mtime_ns,
        "sha256": sha256(CONTENT),
    }
    assert left_in(folder) == [NAME, f"{NAME}.json"]
    assert remote.asked == [(None, None)]


def test_progress_counts_the_bytes_up_to_the_whole(remote, tmp_path):
    remote.answers = [Answer(cut_after=128 * KIB)]
    reports = []

    fetch(remote.url, tmp_path, progress=lambda *report: reports.append(report))

    assert [done // KIB for done, _ in reports] == [64, 128, 192, 256, 300]
    assert {total for _, total in reports} == {len(CONTENT)}
    assert reports[-1] == (len(CONTENT), len(CONTENT))


def test_a_server_that_announces_no_length_is_read_to_its_end(remote, tmp_path):
    remote.answers = [Answer(without=("Content-Length",))]
    reports = []

    fetched = fetch(remote.url, tmp_path, progress=lambda *report: reports.append(report))

    assert fetched.sha256 == sha256(CONTENT)
    assert reports[-1] == (len(CONTENT), None)


def test_an_escaped_name_is_the_files_name(remote, tmp_path):
    fetched = fetch(remote.url.replace(NAME, "abo%20images.tar"), tmp_path)

    assert fetched.path == tmp_path / "abo images.tar"


# --- What is there already ---


def test_an_archive_already_fetched_is_not_asked_for_again(remote, tmp_path):
    first = fetch(remote.url, tmp_path)
    remote.asked.clear()

    again = fetch(remote.url, tmp_path)

    assert again == FetchedArchive(first.path, first.bytes, first.sha256, first.source, fetched=False)
    assert remote.asked == []


def test_a_noted_checksum_is_not_computed_again(remote, tmp_path, monkeypatch):
    first = fetch(remote.url, tmp_path)
    monkeypatch.setattr("abo_pipeline.download._sha256", lambda _: pytest.fail("hashed again"))

    assert fetch(remote.url, tmp_path).sha256 == first.sha256
    assert fetch(str(first.path), tmp_path / "state").sha256 == first.sha256


def test_an_archive_that_a_person_put_there_is_used(remote, tmp_path):
    (tmp_path / NAME).write_bytes(OTHER)

    first, second = fetch(remote.url, tmp_path), fetch(remote.url, tmp_path)

    assert first == second == FetchedArchive(tmp_path / NAME, len(OTHER), sha256(OTHER), remote.url, fetched=False)
    assert remote.asked == []


def test_an_archive_that_was_used_by_its_path_is_not_downloaded_over(remote, tmp_path):
    (tmp_path / NAME).write_bytes(OTHER)
    fetch(str(tmp_path / NAME), tmp_path)

    assert fetch(remote.url, tmp_path).sha256 == sha256(OTHER)
    assert remote.asked == []


def test_a_touched_archive_is_still_the_same(remote, tmp_path):
    path = fetch(remote.url, tmp_path).path
    os.utime(path, ns=(0, 0))

    assert fetch(remote.url, tmp_path).sha256 == sha256(CONTENT)
    assert json.loads((tmp_path / f"{NAME}.json").read_text())["mtime_ns"] == 0
    assert len(remote.asked) == 1


def test_an_archive_that_was_altered_after_the_download_is_refused(remote, tmp_path):
    path = fetch(remote.url, tmp_path).path
    path.write_bytes(OTHER)

    assert refusal(remote.url, tmp_path) == (
        f"{path} is no longer what was fetched from {remote.url}: its SHA-256 was {sha256(CONTENT)} and is"
        f" {sha256(OTHER)}. Delete it to have it fetched again, or give its path in place of the URL."
    )


def test_a_namesake_from_another_address_is_fetched_anew(remote, tmp_path):
    fetch(remote.url, tmp_path)
    remote.content = OTHER
    elsewhere = remote.url.replace("archives", "mirror")

    fetched = fetch(elsewhere, tmp_path)

    assert fetched == FetchedArchive(tmp_path / NAME, len(OTHER), sha256(OTHER), elsewhere, fetched=True)


def test_two_processes_at_once_download_once(remote, tmp_path):
    remote.answers = [Answer(slow=True)]

    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        both = [processes.submit(fetch, remote.url, tmp_path) for _ in range(2)]
        archives = [future.result() for future in both]

    assert sorted(archive.fetched for archive in archives) == [False, True]
    assert {archive.sha256 for archive in archives} == {sha256(CONTENT)}
    assert len(remote.asked) == 1


def test_four_threads_at_once_download_once(remote, tmp_path):
    remote.answers = [Answer(slow=True)]

    with ThreadPoolExecutor(4) as threads:
        archives = list(threads.map(lambda _: fetch(remote.url, tmp_path), range(4)))

    assert sorted(archive.fetched for archive in archives) == [False, False, False, True]
    assert len(remote.asked) == 1


# --- Resuming ---


def test_a_cut_download_goes_on_where_it_was_cut(remote, tmp_path, pauses):
    remote.answers = [Answer(cut_after=128 * KIB), Answer(cut_after=64 * KIB)]

    fetched = fetch(remote.url, tmp_path)

    assert fetched.sha256 == sha256(CONTENT)
    assert remote.asked == [(None, None), ("bytes=131072-", '"one"'), ("bytes=196608-", '"one"')]
    assert pauses == [1.0, 1.0]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(remote, tmp_path):
    remote.answers = [Answer(cut_after=64 * KIB), Answer(status=503)]
    refusal(remote.url, tmp_path, attempts=1)
    assert left_in(tmp_path) == [f"{NAME}.part", f"{NAME}.part.json"]

    fetched = fetch(remote.url, tmp_path)

    assert fetched.sha256 == sha256(CONTENT)
    assert remote.asked[-1] == ("bytes=65536-", '"one"')
    assert left_in(tmp_path) == [NAME, f"{NAME}.json"]


def test_the_time_of_the_last_change_serves_where_there_is_no_strong_etag(remote, tmp_path):
    remote.etag = 'W/"weak"'
    changed = {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
    remote.answers = [
        Answer(cut_after=64 * KIB, headers=changed),
        Answer(ignores_if_range=True, headers=changed),
    ]

    fetched = fetch(remote.url, tmp_path)

    assert fetched.sha256 == sha256(CONTENT)
    assert remote.asked == [(None, None), ("bytes=65536-", "Wed, 21 Oct 2015 07:28:00 GMT")]


def test_without_any_mark_of_the_version_it_starts_afresh(remote, tmp_path):
    remote.answers = [Answer(cut_after=64 * KIB, without=("ETag",))]

    assert fetch(remote.url, tmp_path).sha256 == sha256(CONTENT)
    assert remote.asked == [(None, None), (None, None)]


@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_a_remote_file_that_changed_is_started_afresh(remote, tmp_path, ignores_if_range):
    remote.answers = [Answer(cut_after=128 * KIB), Answer(status=500)]
    refusal(remote.url, tmp_path, attempts=1)
    remote.content, remote.etag = OTHER, '"two"'
    remote.answers = [Answer(ignores_if_range=ignores_if_range)]

    fetched = fetch(remote.url, tmp_path)

    assert fetched.sha256 == sha256(OTHER)
    assert remote.asked[2] == ("bytes=131072-", '"one"')
    assert remote.asked[3:] == ([(None, None)] if ignores_if_range else [])


def test_a_changed_length_under_the_old_etag_is_started_afresh(remote, tmp_path):
    remote.answers = [Answer(cut_after=128 * KIB), Answer(status=500)]
    refusal(remote.url, tmp_path, attempts=1)
    remote.content = OTHER

    assert fetch(remote.url, tmp_path).sha256 == sha256(OTHER)


def test_a_server_that_answers_with_another_range_is_not_believed(remote, tmp_path):
    elsewhere = {"Content-Range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"}
    remote.answers = [Answer(cut_after=128 * KIB), Answer(headers=elsewhere)]

    assert fetch(remote.url, tmp_path).sha256 == sha256(CONTENT)
    assert remote.asked == [(None, None), ("bytes=131072-", '"one"'), (None, None)]


def test_a_server_that_ignores_ranges_is_read_from_the_start(remote, tmp_path):
    remote.answers = [Answer(cut_after=128 * KIB), Answer(ignores_range=True)]

    assert fetch(remote.url, tmp_path).sha256 == sha256(CONTENT)
    assert len(remote.asked) == 2


def test_what_is_left_of_another_address_is_not_continued(remote, tmp_path):
    remote.answers = [Answer(cut_after=128 * KIB), Answer(status=500)]
    refusal(remote.url, tmp_path, attempts=1)

    fetch(remote.url.replace("archives", "mirror"), tmp_path)

    assert remote.asked[-1] == (None, None)


def leave_part(folder: Path, remote: Remote, content: bytes) -> None:
    """What an interrupted call leaves."""
    (folder / f"{NAME}.part").write_bytes(content)
    note = {"source": remote.url, "etag": remote.etag, "last_modified": None, "total": len(remote.content)}
    (folder / f"{NAME}.part.json").write_text(json.dumps(note))


def test_what_had_arrived_whole_is_not_fetched_twice(remote, tmp_path):
    leave_part(tmp_path, remote, CONTENT)

    fetched = fetch(remote.url, tmp_path)

    assert fetched.sha256 == sha256(CONTENT)
    assert remote.asked == [(f"bytes={len(CONTENT)}-", '"one"')]
    assert json.loads((tmp_path / f"{NAME}.json").read_text())["etag"] == '"one"'


def test_what_is_longer_than_the_remote_file_is_started_afresh(remote, tmp_path):
    leave_part(tmp_path, remote, CONTENT + b"more")

    assert fetch(remote.url, tmp_path).sha256 == sha256(CONTENT)
    assert remote.asked == [(f"bytes={len(CONTENT) + 4}-", '"one"'), (None, None)]


def test_a_refused_range_without_a_length_proves_nothing(remote, tmp_path):
    leave_part(tmp_path, remote, CONTENT[:KIB])
    remote.answers = [Answer(status=416)]

    assert fetch(remote.url, tmp_path).sha256 == sha256(CONTENT)
    assert remote.asked == [("bytes=1024-", '"one"'), (None, None)]


def test_an_unreadable_note_of_the_part_makes_it_start_afresh(remote, tmp_path):
    leave_part(tmp_path, remote, OTHER)
    (tmp_path / f"{NAME}.part.json").write_text("[")

    assert fetch(remote.url, tmp_path).sha256 == sha256(CONTENT)


# --- Trying again, and giving up ---


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_passing_error_is_tried_again_after_growing_pauses(remote, tmp_path, pauses, status):
    remote.answers = [Answer(status=status)] * 3

    assert fetch(remote.url, tmp_path, backoff_seconds=0.5).sha256 == sha256(CONTENT)
    assert pauses == [0.5, 1.0, 2.0]


def test_it_gives_up_after_the_attempts_that_were_granted(remote, tmp_path, pauses):
    remote.answers = [Answer(status=503)] * 9

    assert refusal(remote.url, tmp_path, attempts=4) == (
        f"{remote.url} could not be fetched: the server answered 503 Service Unavailable. Attempts in a row"
        " that brought nothing new: 4. 0 bytes have arrived and are kept; run again to go on."
    )
    assert len(remote.asked) == 4
    assert pauses == [1.0, 2.0, 4.0]


def test_attempts_that_bring_something_are_not_held_against_it(remote, tmp_path):
    remote.answers = [Answer(cut_after=64 * KIB), Answer(status=500)] * 4

    assert fetch(remote.url, tmp_path, attempts=2).sha256 == sha256(CONTENT)


def test_a_server_that_always_starts_over_and_cuts_is_given_up(remote, tmp_path):
    remote.answers = [Answer(cut_after=64 * KIB, ignores_range=True)] * 20

    assert refusal(remote.url, tmp_path, attempts=3).endswith(
        "Attempts in a row that brought nothing new: 3. 65,536 bytes have arrived and are kept; run again to go on."
    )
    assert len(remote.asked) == 4


def test_a_length_that_is_never_reached_is_given_up(remote, tmp_path):
    remote.answers = [Answer(headers={"Content-Length": str(len(CONTENT) + 1)}, ignores_range=True)] * 20

    assert ": the connection broke off." in refusal(remote.url, tmp_path, attempts=2)
    assert not (tmp_path / NAME).exists()


def test_more_bytes_than_were_announced_are_thrown_away(remote, tmp_path):
    short = {"Content-Range": f"bytes 65536-{len(CONTENT) - 1}/200000"}
    leave_part(tmp_path, remote, CONTENT[: 64 * KIB])
    (tmp_path / f"{NAME}.part.json").write_text(json.dumps({"source": remote.url, "etag": '"one"'}))
    remote.answers = [Answer(headers=short)]

    assert fetch(remote.url, tmp_path).sha256 == sha256(CONTENT)
    assert remote.asked == [("bytes=65536-", '"one"'), (None, None)]


def test_a_silent_server_is_given_up(remote, tmp_path):
    remote.answers = [Answer(silent=True)] * 2

    assert refusal(remote.url, tmp_path, attempts=2, timeout_seconds=0.1).startswith(
        f"{remote.url} could not be fetched: the server was silent for 0.1 seconds. Attempts"
    )


def test_a_server_that_is_not_there_is_given_up(tmp_path):
    nowhere = "http://127.0.0.1:9/a.tar"

    assert refusal(nowhere, tmp_path, attempts=2).startswith(
        f"{nowhere} could not be fetched: the connection failed (Connection refused). Attempts"
    )


@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, "Not Found"), (403, "Forbidden"), (410, "Gone"), (416, "Requested Range Not Satisfiable")],
)
def test_a_final_error_is_not_tried_again(remote, tmp_path, pauses, status, reason):
    remote.answers = [Answer(status=status)] * 9

    assert refusal(remote.url, tmp_path) == (
        f"{remote.url} cannot be fetched: the server answered {status} {reason}."
        " Check the URL, and that it may be read with what is given in it."
    )
    assert len(remote.asked) == 1
    assert pauses == []
    assert left_in(tmp_path) == []


def test_a_range_that_nobody_asked_for_is_refused(remote, tmp_path):
    remote.answers = [Answer(status=206, headers={"Content-Range": "bytes 5-9/10"})]

    assert "cannot be fetched: the server answered 206 Partial Content." in refusal(remote.url, tmp_path)
    assert not (tmp_path / NAME).exists()


def test_an_archive_sent_compressed_is_refused(remote, tmp_path):
    remote.answers = [Answer(headers={"Content-Encoding": "gzip"})]

    assert refusal(remote.url, tmp_path) == (
        f"{remote.url} is sent compressed, though it was asked for as it is."
        " Download it with a browser, decompress it, and give its path."
    )


def test_a_redirect_is_followed_and_one_that_leads_nowhere_is_not_tried_again(remote, tmp_path):
    remote.answers = [Answer(status=302, headers={"Location": "/moved"})]
    assert fetch(remote.url, tmp_path).sha256 == sha256(CONTENT)
    assert remote.paths[-1] == "/moved"

    remote.answers = [Answer(status=302, headers={"Location": "ftp://host/?secret"})]
    assert refusal(remote.url, tmp_path / "again") == (
        f"{remote.url} cannot be fetched: InvalidSchema. Check the URL, and where it redirects to."
    )


# --- What changed at its source ---


def change(remote: Remote) -> None:
    remote.content, remote.etag = OTHER, '"two"'


def test_what_was_fetched_stays_in_use_when_the_original_changes(remote, tmp_path):
    first = fetch(remote.url, tmp_path)
    change(remote)

    assert fetch(remote.url, tmp_path).sha256 == first.sha256
    assert len(remote.asked) == 1


def test_a_refresh_goes_over_to_the_new_version(remote, tmp_path):
    path = fetch(remote.url, tmp_path).path
    change(remote)

    with path.open("rb") as reader:
        fetched = fetch(remote.url, tmp_path, refresh=True)
        read_on = reader.read()

    assert fetched == FetchedArchive(path, len(OTHER), sha256(OTHER), remote.url, fetched=True)
    assert path.read_bytes() == OTHER
    assert read_on == CONTENT
    assert json.loads((tmp_path / f"{NAME}.json").read_text())["etag"] == '"two"'
    assert left_in(tmp_path) == [NAME, f"{NAME}.json"]
    assert not fetch(remote.url, tmp_path).fetched


@pytest.mark.parametrize("knows_head", [True, False])
def test_a_refresh_of_what_did_not_change_downloads_nothing(remote, tmp_path, knows_head):
    first = fetch(remote.url, tmp_path)
    remote.answers = [Answer(status=200 if knows_head else 405)]

    again = fetch(remote.url, tmp_path, refresh=True)

    assert again == FetchedArchive(first.path, first.bytes, first.sha256, first.source, fetched=False)
    assert remote.heads == 1
    assert remote.asked[1:] == ([] if knows_head else [("bytes=0-0", None)])


def test_a_refresh_from_a_server_that_names_no_version_downloads(remote, tmp_path):
    remote.answers = [Answer(without=("ETag",))] * 3
    fetch(remote.url, tmp_path)

    assert fetch(remote.url, tmp_path, refresh=True).fetched


def test_a_refresh_before_the_first_download_is_one(remote, tmp_path):
    assert fetch(remote.url, tmp_path, refresh=True).sha256 == sha256(CONTENT)
    assert (remote.heads, len(remote.asked)) == (0, 1)


def test_a_refresh_replaces_what_was_altered_here(remote, tmp_path):
    path = fetch(remote.url, tmp_path).path
    path.write_bytes(OTHER)

    assert fetch(remote.url, tmp_path, refresh=True).sha256 == sha256(CONTENT)


def test_a_refresh_that_is_cut_leaves_the_old_one_in_use_and_goes_on_later(remote, tmp_path):
    fetch(remote.url, tmp_path)
    change(remote)
    remote.answers = [Answer(), Answer(cut_after=128 * KIB), Answer(status=503)]

    assert "131,072 bytes have arrived and are kept" in refusal(remote.url, tmp_path, refresh=True, attempts=1)
    assert fetch(remote.url, tmp_path).sha256 == sha256(CONTENT)
    assert fetch(remote.url, tmp_path, refresh=True).sha256 == sha256(OTHER)
    assert remote.asked[-1] == ("bytes=131072-", '"two"')


@pytest.mark.parametrize("last_act", ["replace", "write_note"])
def test_a_refresh_that_is_killed_near_its_end_leaves_one_whole_archive(remote, tmp_path, monkeypatch, last_act):
    path = fetch(remote.url, tmp_path).path
    change(remote)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    written: list[Path] = []

    def killed_at_the_second(note: Path, _: object) -> None:
        written.append(note)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if last_act == "replace":
            patched.setattr(type(path), "replace", killed)
        else:
            patched.setattr("abo_pipeline.download._write_note", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            fetch(remote.url, tmp_path, refresh=True)

    expected = CONTENT if last_act == "replace" else OTHER
    assert fetch(remote.url, tmp_path).sha256 == sha256(expected)
    assert fetch(remote.url, tmp_path, refresh=True).sha256 == sha256(OTHER)
    assert path.read_bytes() == OTHER


def test_a_copy_of_another_version_than_is_wanted_is_refreshed(remote, tmp_path):
    fetch(remote.url, tmp_path)
    change(remote)

    assert not fetch(remote.url, tmp_path, sha256=sha256(CONTENT)).fetched
    assert fetch(remote.url, tmp_path, sha256=sha256(OTHER)).sha256 == sha256(OTHER)


def test_a_version_that_is_gone_from_its_source_is_refused(remote, tmp_path):
    change(remote)

    assert refusal(remote.url, tmp_path, sha256=sha256(CONTENT)) == (
        f"{remote.url} is no longer the archive that was taken before: its SHA-256 was {sha256(CONTENT)} and is"
        f" {sha256(OTHER)}. Materialize raw_archive with refresh: true, and then image_paths, to go over to the"
        " new one."
    )


@pytest.mark.parametrize(
    ("headers", "without", "stamp"),
    [
        ({}, (), '"one"'),
        ({"ETag": 'W/"weak"'}, (), '"weak"'),
        (
            {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT", "Content-Length": "7"},
            ("ETag",),
            "Wed, 21 Oct 2015 07:28:00 GMT, 7 bytes",
        ),
    ],
)
def test_the_stamp_of_a_url_is_its_etag_or_else_time_and_size(remote, tmp_path, headers, without, stamp):
    remote.answers = [Answer(headers=headers, without=without)]

    assert remote_stamp(remote.url, tmp_path) == stamp
    assert (remote.heads, remote.asked) == (1, [])
    assert left_in(tmp_path) == []


def test_the_stamp_is_had_from_a_server_that_knows_no_head(remote, tmp_path):
    remote.answers = [Answer(status=403)]

    assert remote_stamp(remote.url, tmp_path) == '"one"'
    assert remote.asked == [("bytes=0-0", None)]


@pytest.mark.parametrize("place", ["http", "file", "store"])
def test_the_stamp_is_that_of_what_was_fetched_until_the_original_changes(remote, tmp_path, bucket, place):
    source = {"http": remote.url, "file": str(tmp_path / "a.tar"), "store": bucket.url}[place]
    (tmp_path / "a.tar").write_bytes(CONTENT)
    folder = tmp_path / "state"
    if place != "file":
        assert fetched_stamp(source, folder) is None
    fetch(source, folder)
    before = remote_stamp(source, folder)
    assert fetched_stamp(source, folder) == before

    change(remote)
    (tmp_path / "a.tar").write_bytes(OTHER)
    bucket.put(OTHER)

    assert remote_stamp(source, folder) != before
    if place != "file":
        assert fetched_stamp(source, folder) == before
    fetch(source, folder, refresh=True)
    assert fetched_stamp(source, folder) == remote_stamp(source, folder)


def test_nobody_knows_the_stamp_of_what_a_person_put_there(remote, tmp_path):
    (tmp_path / NAME).write_bytes(OTHER)
    fetch(remote.url, tmp_path)

    assert fetched_stamp(remote.url, tmp_path) is None


def stamp_refusal(source: str, folder: Path, **options) -> str:
    with pytest.raises(ArchiveError) as caught:
        remote_stamp(source, folder, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (
            [Answer(without=("ETag",))],
            "comes with neither ETag nor Last-Modified, so that nobody can tell whether it changed."
            " Materialize raw_archive with refresh: true when you know that it did.",
        ),
        (
            [Answer(status=404)] * 2,
            "cannot be fetched: the server answered 404 Not Found."
            " Check the URL, and that it may be read with what is given in it.",
        ),
        (
            [Answer(status=503)] * 2,
            "cannot be looked at: the server answered 503 Service Unavailable. Try again later.",
        ),
    ],
)
def test_a_stamp_that_cannot_be_had_is_refused_without_the_urls_secrets(remote, tmp_path, answers, words):
    remote.answers = answers

    assert stamp_refusal(with_secrets(remote.url), tmp_path) == f"{remote.url} {words}"


def test_the_stamp_of_what_is_not_there_is_refused(tmp_path):
    assert stamp_refusal(str(tmp_path / NAME), tmp_path).startswith(f"{tmp_path / NAME} does not exist.")
    assert stamp_refusal("http://127.0.0.1:9/a.tar", tmp_path) == (
        "http://127.0.0.1:9/a.tar cannot be looked at: the connection failed (Connection refused). Try again later."
    )


# --- Object stores ---


@dataclass
class Bucket:
    """One object in a store that can be reached through fsspec, and what is done to those who read it."""

    content: bytes = CONTENT
    etag: str | None = "one"
    url: str = f"bucket://user:pass%40word@shop/archives/{NAME}?sig=signed"
    faults: dict[int, Exception | Callable[[], None]] = field(default_factory=dict)
    """By the position from which is read: what is raised there, or done before, once."""
    begun: list[int] = field(default_factory=list)
    """Where each reader began."""
    looked: int = 0
    seekable: bool = True
    problem: Exception | None = None

    def put(self, content: bytes) -> None:
        self.content, self.etag = content, sha256(content)[:8]


class BucketFileSystem(fsspec.AbstractFileSystem):
    protocol = "bucket"
    cachable = False
    bucket: ClassVar[Bucket]

    def info(self, path, **_):
        self.bucket.looked += 1
        if self.bucket.problem:
            raise self.bucket.problem
        if not path.partition("?")[0].endswith(NAME):
            raise FileNotFoundError(path)
        tag = {"ETag": self.bucket.etag} if self.bucket.etag else {}
        return {"name": path, "type": "file", "size": len(self.bucket.content), **tag}

    def _open(self, *_, **__):
        return BucketFile(self.bucket)


class BucketFile(io.BytesIO):
    """Answers each read from what the bucket holds at that time, as stores do."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__()
        self.bucket, self.position = bucket, 0
        self.begin = True

    def seekable(self) -> bool:
        return self.bucket.seekable

    def seek(self, position, *_):
        self.position = position
        return position

    def read(self, size=-1):
        if self.begin:
            self.bucket.begun.append(self.position)
            self.begin = False
        fault = self.bucket.faults.pop(self.position, None)
        if isinstance(fault, Exception):
            raise fault
        if fault:
            fault()
        chunk = self.bucket.content[self.position : self.position + size]
        self.position += len(chunk)
        return chunk


fsspec.register_implementation("bucket", BucketFileSystem)

SHOWN = f"bucket://shop/archives/{NAME}"


@pytest.fixture
def bucket() -> Bucket:
    BucketFileSystem.bucket = Bucket()
    return BucketFileSystem.bucket


def test_an_object_is_downloaded_whole_and_noted(bucket, tmp_path):
    reports = []

    fetched = fetch(bucket.url, tmp_path, progress=lambda *report: reports.append(report))

    path = tmp_path / NAME
    assert fetched == FetchedArchive(path, len(CONTENT), sha256(CONTENT), SHOWN, fetched=True)
    assert path.read_bytes() == CONTENT
    assert json.loads((tmp_path / f"{NAME}.json").read_text()) == {
        "source": SHOWN,
        "etag": "one",
        "last_modified": None,
        "archive": NAME,
        "bytes": len(CONTENT),
        "mtime_ns": path.stat().st_mtime_ns,
        "sha256": sha256(CONTENT),
    }
    assert left_in(tmp_path) == [NAME, f"{NAME}.json"]
    assert [done // KIB for done, _ in reports] == [64, 128, 192, 256, 300]
    assert {total for _, total in reports} == {len(CONTENT)}


def test_an_object_in_a_store_of_fsspecs_own_is_fetched_and_refreshed(tmp_path):
    store = fsspec.filesystem("memory")
    store.pipe_file("/abo-test/a.tar", CONTENT)
    source = "memory://abo-test/a.tar"

    first, again = fetch(source, tmp_path), fetch(source, tmp_path, refresh=True)
    store.pipe_file("/abo-test/a.tar", OTHER)
    new = fetch(source, tmp_path, refresh=True)
    store.rm("/abo-test", recursive=True)

    assert [(one.sha256, one.fetched) for one in (first, again, new)] == [
        (sha256(CONTENT), True),
        (sha256(CONTENT), False),
        (sha256(OTHER), True),
    ]


def test_an_object_already_fetched_is_not_asked_for_again(bucket, tmp_path):
    fetch(bucket.url, tmp_path)
    bucket.looked = 0

    assert not fetch(bucket.url, tmp_path).fetched
    assert bucket.looked == 0


def test_an_object_goes_on_where_it_was_cut(bucket, tmp_path, pauses):
    bucket.faults = {128 * KIB: ConnectionResetError(104, "secret"), 192 * KIB: TimeoutError("secret")}

    assert fetch(bucket.url, tmp_path).sha256 == sha256(CONTENT)
    assert bucket.begun == [0, 128 * KIB, 192 * KIB]
    assert pauses == [1.0, 1.0]


def test_an_object_that_can_only_be_read_from_the_start_is_read_from_there(bucket, tmp_path):
    bucket.seekable = False
    bucket.faults = {128 * KIB: ConnectionResetError()}

    assert fetch(bucket.url, tmp_path).sha256 == sha256(CONTENT)
    assert bucket.begun == [0, 0]


def test_an_object_that_is_changed_while_it_is_read_is_started_afresh(bucket, tmp_path):
    bucket.faults = {128 * KIB: lambda: bucket.put(OTHER)}

    assert fetch(bucket.url, tmp_path).sha256 == sha256(OTHER)
    assert bucket.begun == [0, 0]


def test_what_is_left_of_an_older_object_is_not_continued(bucket, tmp_path):
    bucket.faults = {128 * KIB: ConnectionResetError()}
    refusal(bucket.url, tmp_path, attempts=0)
    bucket.put(OTHER)

    assert fetch(bucket.url, tmp_path).sha256 == sha256(OTHER)
    assert bucket.begun == [0, 0]


def test_a_store_without_etags_and_times_is_known_by_what_it_says(bucket, tmp_path):
    bucket.etag = None
    fetch(bucket.url, tmp_path)

    assert not fetch(bucket.url, tmp_path, refresh=True).fetched
    bucket.content = OTHER
    assert fetch(bucket.url, tmp_path, refresh=True).sha256 == sha256(OTHER)


class NoCredentialsError(Exception):
    """Named like botocore's, which is no OSError."""


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (FileNotFoundError("secret"), "it does not exist"),
        (PermissionError("secret"), "this machine's credentials do not allow it"),
        (
            NoCredentialsError("secret"),
            "this machine has no valid credentials for it; set those of the store in its environment",
        ),
    ],
)
def test_a_store_that_refuses_for_good_is_not_asked_again(bucket, tmp_path, pauses, problem, words):
    bucket.problem = problem

    assert refusal(bucket.url, tmp_path) == (
        f"{SHOWN} cannot be fetched: {words}. Check the URL, and what this machine may read."
    )
    assert pauses == []
    assert left_in(tmp_path) == []


def test_a_store_that_does_not_answer_is_given_up(bucket, tmp_path, pauses):
    bucket.problem = ConnectionRefusedError(111, "secret")

    assert refusal(bucket.url, tmp_path, attempts=3) == (
        f"{SHOWN} could not be fetched: the store could not be read (Connection refused). Attempts in a row that"
        " brought nothing new: 3. 0 bytes have arrived and are kept; run again to go on."
    )
    assert pauses == [1.0, 2.0]


def test_a_full_disk_is_not_taken_for_the_stores_fault(bucket, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 * KIB, limits[1]))
    try:
        words = refusal(bucket.url, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert words == (
        f"{SHOWN} cannot be downloaded into {tmp_path}: File too large."
        " Give a folder that may be written and has room for the archive."
    )
    assert fetch(bucket.url, tmp_path).sha256 == sha256(CONTENT)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    entry = {"class": "no_such_package.Shop", "err": "Install no_such_package to access Shop"}
    monkeypatch.setitem(known_implementations, "absent", entry)

    assert refusal("absent://user:secret@bucket/a.tar", tmp_path) == (
        "absent://bucket/a.tar needs a package that is not installed. Install no_such_package to access Shop."
    )


@pytest.mark.parametrize("problem", [None, TimeoutError("signed pass@word"), RuntimeError("signed pass@word user:")])
def test_what_a_stores_url_holds_is_shown_nowhere(bucket, tmp_path, caplog, problem):
    bucket.problem = problem
    told = []

    with caplog.at_level(logging.INFO):
        try:
            told.append(repr(fetch(bucket.url, tmp_path, attempts=2)))
        except ArchiveError as error:
            told.append("".join(traceback.format_exception(error)))

    told += [caplog.text, *(path.read_bytes().decode("latin-1") for path in tmp_path.glob("*.json"))]
    assert SHOWN in told[0]
    for secret in ("pass%40word", "pass@word", "user:", "signed"):
        assert secret not in "".join(told)


# --- Secrets ---


def with_secrets(url: str) -> str:
    return url.replace("http://", "http://user:pass%40word@") + "?X-Amz-Signature=signed#fragment"


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [Answer(cut_after=64 * KIB)],
        [Answer(status=404)],
        [Answer(status=500)] * 2,
        [Answer(cut_after=0)] * 2,
        [Answer(silent=True)] * 2,
        [Answer(status=302, headers={"Location": "http://[?X-Amz-Signature=signed"})],
    ],
)
def test_a_password_and_a_query_are_used_and_shown_nowhere(remote, tmp_path, caplog, answers):
    remote.answers = list(answers)
    told = []

    with caplog.at_level(logging.INFO):
        try:
            told.append(repr(fetch(with_secrets(remote.url), tmp_path, attempts=2, timeout_seconds=0.2)))
        except ArchiveError as error:
            told.append("".join(traceback.format_exception(error)))

    told += [caplog.text, *(path.read_bytes().decode("latin-1") for path in tmp_path.glob("*.json"))]
    for secret in ("pass%40word", "pass@word", "user:", "signed", "fragment"):
        assert secret not in "".join(told)
    assert remote.authorization[0] == "Basic dXNlcjpwYXNzQHdvcmQ="
    assert remote.paths[0].endswith("?X-Amz-Signature=signed")


def test_a_new_signature_is_no_new_address(remote, tmp_path):
    fetch(with_secrets(remote.url), tmp_path)

    assert not fetch(f"{remote.url}?X-Amz-Signature=another", tmp_path).fetched


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:p@ss@host:8080/a.tar?key=1#top", "https://host:8080/a.tar"),
        ("https://host/a@b.tar", "https://host/a@b.tar"),
        ("file:///data/a.tar", "file:///data/a.tar"),
        ("s3://key:secret@bucket/a#1.tar?versionId=3", "s3://bucket/a#1.tar"),
        (
            "abfss://container@account.dfs.core.windows.net/a.tar",
            "abfss://container@account.dfs.core.windows.net/a.tar",
        ),
        ("abfss://user:secret@account.dfs.core.windows.net/a.tar", "abfss://account.dfs.core.windows.net/a.tar"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url, shown):
    assert public_url(url) == shown


# --- Sources that are no URL of a server ---


@pytest.mark.parametrize("scheme", ["", "file://", "file://localhost", "FILE://"])
def test_a_file_is_used_in_place(tmp_path, scheme):
    path = tmp_path / "data" / NAME
    path.parent.mkdir()
    path.write_bytes(CONTENT)

    fetched = fetch(f"{scheme}{path}", tmp_path / "state")

    assert fetched == FetchedArchive(path, len(CONTENT), sha256(CONTENT), str(path), fetched=False)
    assert json.loads((path.parent / f"{NAME}.json").read_text())["sha256"] == sha256(CONTENT)
    assert not (tmp_path / "state").exists()


def test_a_file_url_may_hold_escapes(tmp_path):
    path = tmp_path / "my archive#1.tar"
    path.write_bytes(CONTENT)

    assert fetch(path.as_uri(), tmp_path).path == path


def test_a_changed_file_is_hashed_again(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(CONTENT)
    fetch(str(path), tmp_path)
    path.write_bytes(OTHER)

    assert fetch(str(path), tmp_path).sha256 == sha256(OTHER)


def test_the_note_of_a_read_only_file_goes_into_the_folder(tmp_path, monkeypatch):
    path = tmp_path / "mounted" / NAME
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    path.parent.chmod(0o555)
    fetch(str(path), tmp_path / "state")
    monkeypatch.setattr("abo_pipeline.download._sha256", lambda _: pytest.fail("hashed again"))

    assert fetch(str(path), tmp_path / "state").sha256 == sha256(CONTENT)
    assert left_in(path.parent) == [NAME]
    assert left_in(tmp_path / "state") == [f"{NAME}.json"]
    path.parent.chmod(0o755)


def test_a_missing_file_is_refused(tmp_path):
    path = tmp_path / NAME

    assert refusal(str(path), tmp_path) == (
        f"{path} does not exist. Give the path of an archive, or a URL to fetch it from."
    )


def test_a_folder_is_refused(tmp_path):
    assert refusal(str(tmp_path), tmp_path) == f"{tmp_path} is a folder. Give the path of the .tar file itself."


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "nosuch://user:secret@bucket/a.tar?secret",
            "nosuch://bucket/a.tar cannot be fetched. Give a path, or a URL that begins with http://, https:// or"
            " file://, or with the name of an object store such as s3://.",
        ),
        (
            "s3://user:secret@bucket/?secret",
            "s3://bucket/ does not end in a file's name. Give the URL of the archive itself.",
        ),
        (
            "https://user:secret@host:port/a.tar?secret",
            "The URL cannot be understood. Write it like https://host/folder/name.tar.",
        ),
        (
            "https:///a.tar?secret",
            "The URL cannot be understood. Write it like https://host/folder/name.tar.",
        ),
        (
            "https://user:secret@host/folder/?secret",
            "https://host/folder/ does not end in a file's name. Give the URL of the archive itself.",
        ),
        (
            "https://host/%2E%2E",
            "https://host/%2E%2E does not end in a file's name. Give the URL of the archive itself.",
        ),
        (
            "file://host/data/a.tar",
            "file://host/data/a.tar names another machine. Write a file here like file:///folder/name.tar.",
        ),
    ],
)
def test_a_source_that_cannot_be_used_is_refused(tmp_path, source, words):
    assert refusal(source, tmp_path) == words


@pytest.mark.parametrize("escaped", ["..%2F..%2Fescaped.tar", "..%5C..%5Cescaped.tar"])
def test_a_name_cannot_lead_out_of_the_folder(remote, tmp_path, escaped):
    assert fetch(remote.url.replace(NAME, escaped), tmp_path).path == tmp_path / "escaped.tar"


def test_a_folder_that_cannot_be_written_is_named(remote, tmp_path):
    folder = tmp_path / "file"
    folder.touch()

    assert refusal(remote.url, folder) == (
        f"{remote.url} cannot be downloaded into {folder}: File exists."
        " Give a folder that may be written and has room for the archive."
    )
