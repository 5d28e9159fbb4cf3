"""The command line, as a person uses it: on the drawn archive, with the small bundled model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import create_engine, text

from abo_pipeline import cli
from abo_pipeline.archive import Archive
from abo_pipeline.catalog import member_name
from abo_pipeline.sample import SMALL_CLIP, draw_sample
from abo_pipeline_tests.archives import jpeg, write_images, write_tar

pytestmark = pytest.mark.slow

Abo = Callable[..., tuple[int, str, str]]

ABO = Path(sys.executable).with_name("abo")


DOCTOR = (
    *("python", "machine", "state", "assets", "archive", "listings", "model", "postgres", "space"),
    *("dagster", "launcher"),
)
"""What the doctor looks at, in its order."""


@pytest.fixture
def abo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str) -> Abo:
    """Call it with a command's words; gives exit code, standard output and standard error."""
    monkeypatch.setenv("ABO_DATABASE_URL", database_url)
    monkeypatch.setenv("ABO_DEVICE", "cpu")

    def abo(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["abo", *map(str, words)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        out, err = capsys.readouterr()
        return int(exited.value.code or 0), out, err

    return abo


@pytest.fixture
def run(sample) -> tuple[object, ...]:
    """The words that run the pipeline over the drawn archive."""
    return (
        *("run", "--archive", sample.archive, "--listings", sample.listings, "--model", "small-clip"),
        *("--sizes", "20,60,1000", "--partitions", "3", "--batch-size", "32"),
    )


def record(out: str) -> dict[str, str]:
    """A run's lines by the asset that they begin with."""
    return dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(" "))


def test_a_run_reports_each_asset_and_the_commands_that_follow_need_no_flags(abo, run, tmp_path, sample):
    code, out, _ = abo(*run)

    assert code == 0
    said = record(out)
    assert list(said) == ["model", "archive", "listings", "catalogue", "embeddings", "index", "queries", "report"]
    kept, rows = map(int, re.match(r"kept (\d+) of (\d+) images; dropped ", said["catalogue"]).groups())
    embedded, failed = map(
        int, re.fullmatch(r"embedded (\d+), 0 were there already, failed (\d+)", said["embeddings"]).groups()
    )
    assert (kept < rows, failed, embedded + failed) == (True, 2, kept)
    assert f"kept {kept:,} = embedded {embedded:,} + failed {failed:,}" in out
    assert said["index"].startswith("built 3 in ")
    assert (tmp_path / "state" / "reports" / "abo" / "small_clip" / "index.html").is_file()

    # A second run finds nothing to do, and says so.
    code, out, _ = abo(*run)
    assert code == 0
    assert record(out)["embeddings"] == (
        f"nothing to embed, {embedded} were there already, failed 0, "
        "2 failed before (--retry-failures tries them again)"
    )
    assert record(out)["index"].startswith("nothing to build; ")

    assert record(out)["queries"].endswith(" recorded; 100%, 100%, 100% of the hits as before, 0 newcomers")

    # Failures are tried again when asked, and fail again.
    code, out, _ = abo(*run, "--retry-failures")
    assert record(out)["embeddings"].endswith(", failed 2")
    code, out, _ = abo("retry-failures")
    assert (code, list(record(out))) == (0, ["embeddings"])
    assert record(out)["embeddings"].endswith(", failed 2")

    # They are listed by reason, with an example, and one by one.
    code, out, _ = abo("failures")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines() if line[:6].strip().isdigit()] == [
        ["1", "decode", "ImageError"],
        ["1", "decode", "OSError"],
    ]
    code, out, _ = abo("failures", "--json")
    failures = json.loads(out)
    assert [failure["error"] for failure in failures] == sorted(
        ("ImageError", "OSError"), reverse=failures[0]["error"] == "OSError"
    )
    assert all(Path(failure["path"]).suffix == ".jpg" and failure["message"] for failure in failures)
    code, out, _ = abo("failures", "--all")
    assert all(failure["image_id"] in out for failure in failures)

    # Nothing is left to do, as the plan says.
    code, out, _ = abo("plan")
    assert record(out)["pending"] == f"nothing to embed: kept {kept:,} = embedded {embedded:,} + failed {failed:,}"
    code, out, _ = abo("plan", "--json")
    assert (json.loads(out)["pending"], json.loads(out)["speed"]["images"] >= kept) == (0, True)

    # A search by text, by one of its hits, and by a picture that is in the archive.
    code, out, _ = abo("search", "a red chair", "-k", "5", "--json")
    answer = json.loads(out)
    assert (code, answer["query"], answer["size"]) == (0, "a red chair", 1000)
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3, 4, 5]
    best = answer["hits"][0]
    by_id = json.loads(abo("search", "--like", best["image_id"], "-k", "100", "--json")[1])
    assert len(by_id["hits"]) == 100
    assert best["image_id"] not in [hit["image_id"] for hit in by_id["hits"]]
    with Archive.open(sample.archive) as archive:
        (tmp_path / "mine.jpg").write_bytes(archive.read(member_name(best["path"])))
    by_picture = json.loads(abo("search", "--image", tmp_path / "mine.jpg", "-k", "1", "--json")[1])
    assert by_picture["hits"][0]["similarity"] == pytest.approx(1.0, abs=1e-4)

    # A grid, a size, a text that is too long.
    code, out, _ = abo("search", "blue mug", "-k", "3", "--size", "60", "--grid", tmp_path / "grid.png")
    assert (code, Image.open(tmp_path / "grid.png").format) == (0, "PNG")
    assert out.startswith("blue mug, among 60 images (")
    code, _, err = abo("search", "red " * 200, "-k", "1")
    assert (code, err) == (0, "note: The text is longer than the model reads; its end was ignored.\n")

    # The doctor finds everything well; of the machine itself something may be worth a look.
    code, out, _ = abo("doctor")
    marks = {line.split()[1]: line.split()[0] for line in out.splitlines()}
    assert code == 0
    assert marks == dict.fromkeys(DOCTOR, "ok") | {what: marks[what] for what in ("machine", "state")}

    # Another model is refused for the same space, and what is there stays.
    changed = shutil.copytree(SMALL_CLIP, tmp_path / "changed")
    (changed / "extra.json").write_text("{}")
    code, _, err = abo("run", "--archive", sample.archive, "--space", "small_clip", "--model", changed)
    assert code == 2
    assert err.startswith("error: Space small_clip holds vectors of small-clip (fingerprint ")
    assert err.endswith("Use that model, or name another space with --space (ABO_SPACE).\n")
    assert json.loads(abo("search", "a red chair", "-k", "5", "--json")[1]) == answer

    # A bare retry repeats the last run.
    code, out, _ = abo("run", "--retry-failures")
    assert code == 0
    assert record(out)["embeddings"].endswith(", failed 2")


def test_the_storage_ladder_is_a_table_and_a_recommendation(abo, run, tmp_path):
    abo(*run)

    code, out, _ = abo("ladder", "--size", "60", "--rungs", "halfvec, exact")

    folder = tmp_path / "state" / "reports" / "abo" / "small_clip" / "ladder"
    lines = out.splitlines()
    assert code == 0
    assert lines[:2] == [f"ladder      {folder}/ladder.png", f"{'':<11} {folder}/ladder.json"]
    assert lines[2].split() == [
        *("rung", "MB", "B/vector", "build", "s", "effort"),
        *("image", "p50/p95", "text", "p50/p95"),
    ]
    assert [line.split()[:3] for line in lines[3:5]] == [["exact", "0.0", "520"], ["halfvec", "0.0", "264"]]
    assert lines[-1].endswith("To have it, set ABO_EXACT_BELOW above 59.")

    # For programs, and only that.
    code, out, _ = abo("ladder", "--rungs", "exact", "--json")
    found = json.loads(out)
    assert (code, found["size"], [rung["name"] for rung in found["rungs"]]) == (0, 1000, ["exact"])
    assert found == json.loads((folder / "ladder.json").read_text(encoding="utf-8"))

    code, _, err = abo("ladder", "--rungs", "exact,best")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: The ladder has no rung 'best'. There are exact, ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("search", "x"),
            "Nothing has been embedded into space clip_vit_b_32 yet. Run `abo run` (or `abo demo`) first.",
        ),
        (("search",), "Give exactly one of a text, a picture and a stored image; 0 were given."),
        (
            ("search", "x", "--like", "y"),
            "Give exactly one of a text, a picture and a stored image; 2 were given.",
        ),
        (
            ("search", "x", "--grid", "grid.docx"),
            "The pictures cannot be written to grid.docx: end its name with .png or .jpg or .svg or .pdf.",
        ),
        (
            ("search", "x", "--grid", "/no/x.png"),
            "The pictures cannot be written to /no/x.png: there is no folder /no.",
        ),
        (
            ("run", "--sizes", "10,many"),
            "ABO_SIZES has value 'many': Input should be a valid integer, unable to parse string as an integer.",
        ),
        (("run", "--sizes", "0"), "ABO_SIZES has value '0': sizes are whole numbers from 1 to 1,000,000,000."),
        (
            ("run", "--model", "/no/such/folder"),
            "There is no model folder /no/such/folder. Give a folder that holds a CLIP model with --model PATH (or "
            "ABO_MODEL), or use the small one that is bundled: --model small-clip.",
        ),
        (
            ("run",),
            "The model clip-ViT-B-32 is not on this machine, and the model hub cannot be reached. Give a folder that "
            "holds a CLIP model with --model PATH (or ABO_MODEL), or use the small one that is bundled: --model "
            "small-clip.",
        ),
        (
            ("run", "--model", "small-clip", "--archive", "gone.tar"),
            None,
        ),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_2(abo, words, message):
    code, _, err = abo(*words)

    assert code == 2
    assert "Traceback" not in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    if message is not None:
        assert err == f"error: {message}\n"


@pytest.mark.parametrize("words", [("nonsense",), ("search", "--nonsense"), ("search", "x", "-k", "many")])
def test_a_wrong_command_or_flag_is_explained_with_exit_code_2(abo, words):
    code, _, err = abo(*words)

    assert code == 2
    assert "Error: " in err
    assert "Traceback" not in err


def test_debug_shows_where_an_error_came_from(abo):
    code, _, err = abo("search", "--debug")

    assert code == 2
    assert "Traceback" in err
    assert err.endswith("error: Give exactly one of a text, a picture and a stored image; 0 were given.\n")


def test_debug_shows_where_an_error_in_an_asset_came_from(abo, tmp_path):
    other = write_tar(tmp_path / "holiday.tar", {"holiday/beach.jpg": jpeg()})

    code, _, err = abo("run", "--model", "small-clip", "--archive", other, "--debug")

    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith(f"error: {other} holds no member ")


def test_an_archive_of_something_else_is_refused(abo, tmp_path):
    other = write_tar(tmp_path / "holiday.tar", {"holiday/beach.jpg": jpeg()})

    code, _, err = abo("run", "--model", "small-clip", "--archive", other)

    assert code == 2
    assert err == (
        f"error: {other} holds no member 'images/metadata/images.csv.gz'; its top-level folders are holiday. "
        "Check that it is the archive you mean. An ABO image archive holds images/metadata/images.csv.gz.\n"
    )


def test_a_database_that_does_not_answer_is_named_without_its_password(abo, monkeypatch, tmp_path):
    monkeypatch.setenv("ABO_DATABASE_URL", "postgresql://me:s3cret@127.0.0.1:9/x")
    archive = write_images(tmp_path / "images.tar", {"aa/a.jpg": jpeg()})

    code, out, err = abo("run", "--model", "small-clip", "--archive", archive)

    assert code == 2
    assert err.startswith("error: Postgres does not answer at postgresql+psycopg://me:***@127.0.0.1:9/x: ")
    assert "Check that it runs (`abo doctor`)" in err
    assert "s3cret" not in out + err


def test_a_state_folder_that_cannot_be_written_is_named(abo, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ABO_STATE_DIR", str(tmp_path / "file" / "state"))

    code, _, err = abo("run", "--model", "small-clip")

    assert code == 2
    assert err == (
        f"error: The state folder {tmp_path}/file/state cannot be written to: Not a directory. Set ABO_STATE_DIR to a "
        "folder that can, or change its permissions.\n"
    )


def test_the_doctor_names_what_is_wrong_and_the_remedy(abo, monkeypatch):
    monkeypatch.setenv("ABO_DATABASE_URL", "postgresql://me:s3cret@127.0.0.1:9/x")
    monkeypatch.setenv("ABO_MODEL", "/no/such/model")

    code, out, _ = abo("doctor")

    marks = {line.split()[1]: line.split()[0] for line in out.splitlines()}
    assert code == 1
    assert tuple(marks) == DOCTOR
    assert [what for what, mark in marks.items() if mark == "bad"] == ["model", "postgres", "space"]
    assert "There is no model folder /no/such/model." in out
    assert "s3cret" not in out


def test_the_embedded_server_starts_and_stops_on_command(abo, monkeypatch):
    monkeypatch.delenv("ABO_DATABASE_URL")

    said = [abo("db", word)[1].split()[0] for word in ("status", "start", "status", "stop", "stop")]

    assert said == ["not", "running", "running,", "stopped", "it"]


def test_a_run_that_is_killed_in_the_middle_loses_nothing_and_redoes_nothing(abo, tmp_path, database_url):
    sample = draw_sample(tmp_path / "sample", images=160, seed=3)
    words = [
        *("run", "--archive", sample.archive, "--listings", "none", "--model", "small-clip"),
        *("--sizes", "50,100", "--partitions", "2", "--batch-size", "2"),
    ]
    engine = create_engine(database_url)

    def rows() -> dict[str, str]:
        with engine.connect() as connection:
            if connection.scalar(text("SELECT to_regclass('abo.embeddings_small_clip')")) is None:
                return {}
            return dict(
                map(tuple, connection.execute(text("SELECT image_id, xmin::text FROM abo.embeddings_small_clip")))
            )

    process = subprocess.Popen([ABO, *map(str, words)], env=os.environ, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(rows()) < 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # The server may still be committing what it was sent before the client died.
    time.sleep(0.5)
    before = rows()
    assert process.returncode == -signal.SIGKILL

    code, out, _ = abo(*words)

    after = rows()
    kept = int(re.search(r"kept ([\d,]+) of", out)[1])
    assert code == 0
    assert 20 <= len(before) < kept - 10
    assert f"embedded {len(after) - len(before)}, {len(before)} were there already, failed 2" in out
    assert len(after) == kept - 2
    assert {image_id: after[image_id] for image_id in before} == before
    engine.dispose()
