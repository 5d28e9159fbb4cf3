"""The command line, as a person uses it: on the drawn archive, with the small bundled model."""

import contextlib
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from sqlalchemy import create_engine, text

from abo_pipeline import cli
from abo_pipeline.archive import Archive
from abo_pipeline.catalog import member_name
from abo_pipeline.sample import SMALL_CLIP, draw_sample
from abo_pipeline.settings import Settings
from abo_pipeline.store import opened_store
from abo_pipeline.store.database import transaction
from abo_pipeline_tests.archives import jpeg, write_images, write_tar
from abo_pipeline_tests.conftest import fresh_database

pytestmark = pytest.mark.slow

Abo = Callable[..., tuple[int, str, str]]

ABO = Path(sys.executable).with_name("abo")


DOCTOR = (
    *("python", "machine", "state", "assets", "archive", "listings", "model", "postgres", "space"),
    *("search", "dagster", "launcher"),
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


def test_a_run_reports_each_asset_and_the_commands_that_follow_need_no_flags(abo, run, tmp_path, sample, monkeypatch):
    code, out, _ = abo(*run)

    assert code == 0
    said = record(out)
    assert list(said) == [
        *("model", "archive", "listings", "catalogue", "encoder", "embeddings", "index", "queries", "report")
    ]
    kept, rows = map(int, re.match(r"kept (\d+) of (\d+) images; dropped ", said["catalogue"]).groups())
    embedded, failed = map(
        int, re.fullmatch(r"embedded (\d+), 0 were there already, failed (\d+)", said["embeddings"]).groups()
    )
    assert (kept < rows, failed, embedded + failed) == (True, 2, kept)
    assert f"kept {kept:,} = embedded {embedded:,} + failed {failed:,}" in out
    assert re.fullmatch(r"nothing to build; (\d+ exactly, ){3}0.0 MB; recall at least 1.000", said["index"])
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
    by_picture = json.loads(abo("search", "--image", tmp_path / "mine.jpg", "-k", "100", "--json")[1])
    assert [hit["image_id"] for hit in by_picture["hits"]] == [hit["image_id"] for hit in by_id["hits"]]
    Image.open(tmp_path / "mine.jpg").save(tmp_path / "copy.png")
    by_copy = json.loads(abo("search", "--image", tmp_path / "copy.png", "-k", "1", "--json")[1])
    assert by_copy["hits"][0]["image_id"] == best["image_id"]
    assert by_copy["hits"][0]["similarity"] == pytest.approx(1.0, abs=1e-4)

    # A mix, by flags or in one expression; prompts change what a text is.
    expression = f'"a red chair" + like:{best["image_id"]} - "a chair"'
    code, out, _ = abo("search", expression, "-k", "5", "--json", "--grid", tmp_path / "mix.png")
    mixed = json.loads(out)
    assert (code, mixed["query"], Image.open(tmp_path / "mix.png").format) == (0, expression, "PNG")
    assert best["image_id"] not in [hit["image_id"] for hit in mixed["hits"]]
    flags = ("--like", best["image_id"], "--minus", "a chair", "-k", "5", "--json")
    assert json.loads(abo("search", "a red chair", *flags)[1]) == mixed
    assert abo("search", "a red chair", "--plus", "x", "--plus", '0.5*"y"')[1].startswith(
        '"a red chair" + "x" + 0.5*"y", among 1,000 images ('
    )
    monkeypatch.setenv("ABO_PROMPTS", "a photo of {}; {} on white")
    assert json.loads(abo("search", "a red chair", "-k", "5", "--json")[1])["hits"] != answer["hits"]
    monkeypatch.delenv("ABO_PROMPTS")

    # A grid, a size, a text that is too long.
    code, out, _ = abo("search", "blue mug", "-k", "3", "--size", "60", "--grid", tmp_path / "grid.png")
    assert (code, Image.open(tmp_path / "grid.png").format) == (0, "PNG")
    assert out.startswith("blue mug, among 60 images (")
    code, _, err = abo("search", "red " * 200, "-k", "1")
    assert (code, err) == (0, "note: The text is longer than the model reads; its end was ignored.\n")
    code, out, err = abo("search", '"red" - blue', "-k", "1")
    assert (code, out.startswith('"red" - blue, among 1,000 images (')) == (0, True)
    assert err == (
        'note: The query was read as one text. A mix is written like this: "red shoe" + like:ID - 0.5*"heel".\n'
    )

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

    # A bare retry repeats the last run, and so does what is asked for in so many words, but for what else it says.
    code, out, _ = abo("run", "--again", "--sizes", "20")
    assert (code, Settings.last().archive, Settings.last().sizes) == (0, str(sample.archive), (20,))
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


def test_two_models_side_by_side_and_what_searches_use_is_switched_and_switched_back(abo, run, tmp_path, monkeypatch):
    assert abo("spaces") == (0, "no spaces yet: `abo run` (or `abo demo`) makes the first\n", "")
    assert abo("spaces", "--json")[1] == "[]\n"
    code, out, _ = abo(*run)
    assert (code, "space" in record(out)) == (0, False)
    embedded, failed = map(int, re.search(r"= embedded (\d+) \+ failed (\d+)", out).groups())

    # A run with another model, into a space of its own: all is embedded again, and searches stay where they are.
    other = shutil.copytree(SMALL_CLIP, tmp_path / "other")
    (other / "extra.json").write_text("{}")
    code, out, _ = abo(*run, "--model", other, "--space", "beside")
    assert code == 0
    said = record(out)
    assert said["embeddings"] == f"embedded {embedded}, 0 were there already, failed {failed}"
    assert re.fullmatch(r"nothing to build; (\d+ exactly, ){3}0.0 MB; recall at least 1.000", said["index"])
    assert re.fullmatch(r"\d+ recorded, to be compared with after the next build", said["queries"])
    assert said["space"] == ("embedded into beside, while searches use small_clip. To switch: abo spaces use beside")
    assert (tmp_path / "state" / "reports" / "abo" / "beside" / "index.html").is_file()

    def searched(*words: object) -> str:
        return json.loads(abo("search", "a red chair", "-k", "1", "--json", *words)[1])["space"]

    assert (searched(), searched("--space", "beside")) == ("small_clip", "beside")

    code, out, _ = abo("spaces")
    rows = [line.split() for line in out.splitlines()]
    assert (code, rows[0]) == (0, ["searches", "space", "vectors", "failed", "pending", "sizes", "MB", "model"])
    marked = [line[:8].strip() for line in out.splitlines() if f" {embedded} " in line]
    assert marked == ["use it", ""]
    spaces = json.loads(abo("spaces", "--json")[1])
    assert [(space["name"], space["model"], space["vectors"], space["failures"]) for space in spaces] == [
        ("small_clip", "small-clip", embedded, failed),
        ("beside", str(other), embedded, failed),
    ]
    assert spaces[0]["fingerprint"] != spaces[1]["fingerprint"]
    assert [(space["pending"], space["sizes"], space["is_default"]) for space in spaces] == [
        (0, [20, 60, 1000], True),
        (0, [20, 60, 1000], False),
    ]

    # There, there again, back, back again.
    assert abo("spaces", "use", "beside")[1] == (
        "searches use beside now, and used small_clip before: `abo spaces back`\n"
    )
    assert abo("spaces", "use", "beside")[1] == "searches use beside already\n"
    assert searched() == "beside"
    assert abo("doctor")[1].splitlines()[9] == f"ok   search     beside, made with {other}"
    assert abo("spaces", "back")[1] == "searches use small_clip again\n"
    assert searched() == "small_clip"
    monkeypatch.setenv("ABO_SPACE", "beside")
    assert searched() == "beside"
    assert abo("spaces", "use", "small_clip")[2] == "note: ABO_SPACE is set here, and goes before: to beside\n"
    monkeypatch.delenv("ABO_SPACE")

    # What cannot be: in words.
    refusals = {
        ("search", "x", "--space", "nope"): "Nothing has been embedded into space nope yet. This catalogue has "
        "small_clip, beside.",
        ("spaces", "use", "nope"): "There is no embedding space 'nope'. This catalogue has small_clip, beside.",
        ("spaces", "drop", "nope"): "There is no embedding space 'nope'. This catalogue has small_clip, beside.",
        (
            "spaces",
            "drop",
            "small_clip",
        ): "Space small_clip is the one that searches use, and is not dropped. Have them "
        "use another one first: abo spaces use NAME",
        ("spaces", "drop", "beside"): "There is nobody to ask whether space beside may be dropped: say so with --yes.",
    }
    assert {words: abo(*words) for words in refusals} == {
        words: (2, "", f"error: {message}\n") for words, message in refusals.items()
    }

    # At a terminal somebody is asked.
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    question = re.escape(f"Drop space beside, {embedded} vectors of {other}, ") + r"\d\.\d MB\? \[y/N\]: "
    assert re.fullmatch(f"{question}nothing was dropped\n", abo("spaces", "drop", "beside")[1])
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert re.fullmatch(f"{question}dropped beside\n", abo("spaces", "drop", "beside")[1])
    assert [space["name"] for space in json.loads(abo("spaces", "--json")[1])] == ["small_clip"]
    assert searched() == "small_clip"

    # What was dropped is made anew by a run, and goes without a question where that is said.
    code, out, _ = abo(*run, "--model", other, "--space", "beside", "--until", "image_embeddings")
    assert record(out)["embeddings"].startswith(f"embedded {embedded}, 0 were there already")
    assert abo("spaces", "drop", "beside", "--yes") == (0, "dropped beside\n", "")


class Terminal(io.StringIO):
    """Somebody who answers."""

    def isatty(self) -> bool:
        return True


# --- What searches can be told ---


def shown(out: str) -> list[tuple[str, ...]]:
    """The rows of a search's table: rank, similarity and image_id."""
    rows = (re.match(r" *(\d+) +(-?\d\.\d{3}) +(?:\d+ +)?(\S+) ", line) for line in out.splitlines())
    return [row.groups() for row in rows if row]


def test_a_search_is_narrowed_paged_folded_counted_and_explained(abo, run, monkeypatch):
    assert abo(*run)[0] == 0
    monkeypatch.setattr(cli, "out", Console(highlight=False, soft_wrap=True, width=80))

    def found(*words: object) -> dict:
        code, out, err = abo("search", "a chair", "--json", *words)
        assert code == 0, err
        return json.loads(out)

    def image_ids(*words: object) -> list[str]:
        return [hit["image_id"] for hit in found(*words)["hits"]]

    everything = found("-k", "1000")["hits"]
    count = len(everything)

    # Filters keep to what they say, in the same order as without them; values of one are alternatives.
    def passing(test: Callable[[dict], bool]) -> list[str]:
        return [hit["image_id"] for hit in everything if test(hit)]

    assert image_ids("-k", "1000", "--product-type", "CHAIR") == passing(lambda hit: hit["product_type"] == "CHAIR")
    both = ("--product-type", "chair", "--product-type", "LAMP")
    assert image_ids("-k", "1000", *both) == passing(lambda hit: hit["product_type"] in ("CHAIR", "LAMP"))
    assert image_ids("-k", "1000", *both, "--color", "red") == passing(
        lambda hit: hit["product_type"] in ("CHAIR", "LAMP") and hit["color"] == "Red"
    )
    assert image_ids("-k", "1000", "--title", "desk chair") == passing(
        lambda hit: {"desk", "chair"} <= set((hit["title"] or "").lower().split())
    )
    brand = everything[0]["brand"]
    assert image_ids("-k", "1000", "--brand", brand.upper()) == passing(lambda hit: hit["brand"] == brand)
    narrow, wide = (
        set(image_ids("-k", "1000", *sides)) for sides in (("--max-width", "1999"), ("--min-width", "2000"))
    )
    assert narrow | wide == {hit["image_id"] for hit in everything}
    assert not narrow & wide
    assert narrow
    assert wide
    assert found("--country", "US", "--keyword", "chair", "--min-height", "1000", "--max-height", "9999")[
        "filters"
    ] == {
        "country": ["US"],
        "keyword": ["chair"],
        "min_height": 1000,
        "max_height": 9999,
    }

    # Pages of any length are one list; beyond the last there is nothing, and why is said.
    pages = [found("-k", "7", "--page", page) for page in (1, 2, 3)]
    assert [hit for page in pages for hit in page["hits"]] == everything[:21]
    assert [page["page"] for page in pages] == [1, 2, 3]
    assert [page["match"] for page in pages] == [pages[0]["match"]] * 3
    code, out, err = abo("search", "a chair", "-k", "50", "--page", "9")
    assert (code, err) == (0, f"note: There is no page 9 of 50 hits: {count} images in all, and the last page is 3.\n")
    assert re.fullmatch(r"a chair, among 1,000 images \(.*\)\nno hits\n", out)

    # One hit a product, which says which others it stands for.
    folded = found("-k", "5", "--fold")["hits"]
    products = [hit["item_id"] for hit in folded if hit["item_id"]]
    assert [hit["rank"] for hit in folded] == [1, 2, 3, 4, 5]
    assert len(products) == len(set(products))
    assert folded[0]["folded"]
    shown_or_folded = [image_id for hit in folded for image_id in (hit["image_id"], *hit["folded"])]
    assert len(shown_or_folded) == len(set(shown_or_folded))
    assert found("-k", "5", "--near", "0.98")["hits"] == folded
    assert found("-k", "5", "--near", "0.6")["hits"] != folded
    out = abo("search", "a chair", "-k", "5", "--fold")[1]
    assert f" (+{len(folded[0]['folded'])} alike)" in " ".join(out.split())

    # What the hits are, and how they were found: as lines and as values.
    code, out, err = abo("search", "a chair", "-k", "5", "--facets", "--explain")
    values = found("-k", "5", "--facets", "--explain")
    counts = values["facets"]
    assert (code, err) == (0, "")
    assert counts["product_type"]["counts"][0]["value"] == "CHAIR"
    for name in ("product_type", "color", "brand"):
        told = Counter(hit[name] for hit in everything[:5] if hit[name])
        assert {each["value"]: each["count"] for each in counts[name]["counts"]} == told
        assert counts[name]["unknown"] == 5 - told.total()
    explained = values["explained"]
    assert explained["exact_ranks"] == {hit["image_id"]: hit["rank"] for hit in everything[:5]}
    assert explained["explanation"]["strategy"] == "exact"
    words = " ".join(out.split())
    assert "similarity exact rank image what it shows" in words
    assert f" CHAIR {counts['product_type']['counts'][0]['count']}" in words
    assert "strategy exact: this size has no index plan " in words
    assert re.search(r"rows visited \d+ milliseconds \d+\.\d encode, \d+\.\d SQL, \d+\.\d fetch$", words)
    assert [row[2] for row in shown(out)] == [hit["image_id"] for hit in everything[:5]]
    # No word is broken at the edge of the terminal, and no line is longer than it.
    assert all(len(line) <= 80 for line in out.splitlines())
    assert all(word in words.split() for hit in everything[:5] for word in (hit["title"] or "").split())

    # What a match is worth, and why there are fewer hits.
    assert "\nthe best hit is nearer than those of " in abo("search", "lamp", "-k", "1")[1]
    code, out, _ = abo("search", "democracy", "-k", "1")
    assert "\nno good match: the best hit is nearer than those of " in out
    smallest = image_ids("-k", "1000", "--size", "20")
    beds = passing(lambda hit: hit["product_type"] == "BED")
    titles = [frozenset((hit["title"] or "").split()) for hit in everything]
    alone = next(" ".join(title) for title in titles if sum(title <= other for other in titles) == 1)
    few = {
        ("--product-type", "NOPE"): "No image that is searched passes the filter product_type NOPE. `abo search` "
        "without it and with --facets shows which values hits have.",
        ("--min-width", "99999"): "No image that is searched passes the filter min_width 99999.",
        ("--title", "office ch"): "No image that is searched passes the filter title office ch. Words of a title are "
        "whole words.",
        ("--product-type", "BED", "-k", "50"): f"There are no more hits: {len(beds)} images pass the filter.",
        ("--title", alone): "There are no more hits: 1 image passes the filter.",
        ("--size", "20", "-k", "50"): f"There are no more hits: {len(smallest)} images in all.",
        ("--min-similarity", "1"): "All hits are below the least similarity, 1.",
        ("--fold", "-k", "1000"): f"There are no more hits: {count} images in all, and pictures of one "
        "thing are one hit.",
    }
    assert {words: abo("search", "a chair", *words)[2] for words in few} == {
        words: f"note: {reason}\n" for words, reason in few.items()
    }
    assert found("--product-type", "NOPE")["warnings"] == [few["--product-type", "NOPE"]]

    # What cannot be asked.
    refused = {
        ("--page", "0"): "The page is 0; the first one is 1.",
        ("-k", "0"): "k is 0; ask for at least 1 hit.",
        ("--near", "2"): "Pictures are folded from a cosine of 2.0 on; give one above 0 and up to 1, such as 0.98.",
        ("--min-width", "-1"): "The filter min_width is -1; a side has 0 to 2,147,483,647 pixels.",
        ("--min-similarity", "1.5"): "The least similarity is 1.5; a cosine lies between -1 and 1.",
    }
    assert {words: abo("search", "a chair", *words) for words in refused} == {
        words: (2, "", f"error: {message}\n") for words, message in refused.items()
    }


def test_indexes_are_built_by_another_strategy_which_is_remembered(abo, run, monkeypatch, tmp_path):
    monkeypatch.setenv("ABO_EXACT_BELOW", "30")
    assert abo(*run)[0] == 0
    monkeypatch.delenv("ABO_EXACT_BELOW")
    before = json.loads(abo("search", "a chair", "--json")[1])

    def remembered() -> str:
        return json.loads((tmp_path / "state" / "settings.json").read_text())["strategy"]

    code, out, _ = abo("index", "--strategy", "ivfflat")

    assert code == 0
    assert remembered() == "ivfflat"
    line, head, *rows, note = out.splitlines()
    rows = [row.split() for row in rows]
    assert line.startswith("index       built 2 in ")
    assert head.split() == ["size", "strategy", "effort", "image@10", "image@100", "text@10", "text@100", "MB"]
    assert [row[:3] for row in rows] == [["20", "exact", "-/-"], ["60", "ivfflat", "1/1"], ["1,000", "ivfflat", "1/1"]]
    assert all(float(recall) >= 0.99 for row in rows for recall in row[3:7])
    assert note == "size 20: searched exactly, which is quicker below 30 vectors (ABO_EXACT_BELOW)"

    # What follows goes by it.
    assert "strategy ivfflat, effort 1: by the size's index" in " ".join(
        abo("search", "a chair", "--explain")[1].split()
    )
    assert json.loads(abo("search", "a chair", "--json")[1])["hits"] == before["hits"]
    code, out, _ = abo("index", "--size", "60")
    assert code == 0
    assert re.match(r"nothing to build; \d+ by ivfflat, ", record(out)["index"])
    code, out, _ = abo("index", "--size", "60", "--rebuild")
    assert (code, record(out)["index"].startswith("built 1 in ")) == (0, True)
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["60"]
    code, out, _ = abo("index", "--strategy", "exact")
    assert [row.split()[:3] for row in out.splitlines()[2:]] == [
        [size, "exact", "-/-"] for size in ("20", "60", "1,000")
    ]
    # A run is what its flags and variables say.
    code, out, _ = abo(*run)
    assert (code, remembered()) == (0, "hnsw")

    # What cannot be: in words, and nothing is remembered of it.
    refused = {
        ("--strategy", "bit", "--size", "77"): "77 is none of the sizes 20, 60, 1,000. To have it beside them: "
        "ABO_SIZES=20,60,77,1000, or abo run --sizes 20,60,77,1000.",
        ("--space", "nowhere"): "There is no embedding space 'nowhere'. This catalogue has small_clip.",
    }
    assert {words: abo("index", *words) for words in refused} == {
        words: (2, "", f"error: {message}\n") for words, message in refused.items()
    }
    assert (
        "'x' is not one of 'exact', 'hnsw', 'hnsw_float', 'ivfflat', 'bit', 'diskann'"
        in abo("index", "--strategy", "x")[2]
    )
    assert remembered() == "hnsw"

    # Of what variables say meanwhile nothing is remembered, and sizes that are not named stay until all are asked for.
    monkeypatch.setenv("ABO_SIZES", "10")
    assert abo("index", "--size", "10")[0] == 0
    monkeypatch.delenv("ABO_SIZES")
    assert [json.loads(abo("search", "a chair", "--json")[1])["size"], searched_sizes()] == [1000, [10, 20, 60, 1000]]
    code, out, _ = abo("index")
    assert (code, searched_sizes()) == (0, [20, 60, 1000])
    assert out.splitlines()[-1] == "dropped, for they are none of ABO_SIZES any more: 10"


def searched_sizes() -> list[int]:
    """Of the default space, those that some index or an exact search serves."""
    with opened_store(Settings.last()) as store, transaction(store.engine) as connection:
        return list(connection.scalars(text("SELECT size FROM size_indexes ORDER BY 1")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("search", "x"),
            "Nothing has been embedded into space clip_vit_b_32 yet. Run `abo run` (or `abo demo`) first.",
        ),
        (("search",), "Nothing is asked for. Give a text, a picture, a URL or a stored image to search by."),
        (("search", *("--like", "y") * 51), "A mix has 1 to 50 parts, not more."),
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
    assert err.endswith("error: Nothing is asked for. Give a text, a picture, a URL or a stored image to search by.\n")


def test_what_one_machine_exports_another_need_not_embed(abo, run, server, monkeypatch, tmp_path):
    abo(*run)
    found = json.loads(abo("search", "a red chair", "-k", "5", "--json")[1])
    code, out, _ = abo("export", tmp_path / "e.parquet")
    embedded = int(re.match(r"exported    (\d+) vectors of space small_clip, 128 dimensions in float32, ", out)[1])
    assert (code, out.endswith(f" s: {tmp_path}/e.parquet\n")) == (0, True)
    code, out, _ = abo("export", tmp_path / "half.parquet", "--precision", "float16")
    assert (code, "128 dimensions in float16" in out) == (0, True)

    with fresh_database(server) as elsewhere:
        monkeypatch.setenv("ABO_DATABASE_URL", elsewhere)
        monkeypatch.setenv("ABO_STATE_DIR", str(tmp_path / "elsewhere"))

        # Before the machine knows which images there are, nothing can be checked.
        monkeypatch.setenv("ABO_MODEL", "small-clip")
        code, _, err = abo("import", tmp_path / "e.parquet")
        assert (code, err.startswith(f"error: None of the {embedded} images in ")) == (2, True)
        monkeypatch.delenv("ABO_MODEL")

        abo(*run, "--until", "image_paths")
        code, out, _ = abo("import", tmp_path / "half.parquet", "--space", "half", "--check", "3")
        assert code == 0
        checked, imported, next_step = out.splitlines()
        assert re.fullmatch(r"checked     3 images embedded again here, least cosine 1\.0000\d", checked)
        assert next_step == "next        abo run --again --space half: embed the rest, build the indexes"
        counts = "0 were there already, 0 are not in the catalogue, 0 have other bytes here"
        assert re.fullmatch(
            rf"imported    accepted {embedded} of {embedded} vectors into space half, in [\d.]+ s; {counts}", imported
        )
        abo("import", tmp_path / "e.parquet")
        code, out, _ = abo("import", tmp_path / "e.parquet")
        assert (code, f"; {embedded} were there already, 0 are" in out) == (0, True)

        # What is left for the run are the two that cannot be decoded.
        assert record(abo("plan")[1])["pending"].startswith("2 images to embed in ")
        said = record(abo(*run)[1])
        assert said["embeddings"] == f"nothing to embed, {embedded} were there already, failed 2"
        # Searches use the space that was imported first.
        assert json.loads(abo("search", "a red chair", "-k", "5", "--json", "--space", "small_clip")[1]) == found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("export", "e.parquet"),
            "There is no embedding space 'clip_vit_b_32'. Nothing has been embedded yet: `abo run`.",
        ),
        (
            ("import", "no.parquet"),
            "no.parquet does not exist, or is no file. Give a file that `abo export` has written.",
        ),
    ],
)
def test_an_export_or_import_that_cannot_be_is_one_sentence(abo, words, message):
    assert abo(*words) == (2, "", f"error: {message}\n")


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
    assert [what for what, mark in marks.items() if mark == "bad"] == ["model", "postgres", "space", "search"]
    assert "There is no model folder /no/such/model." in out
    assert "s3cret" not in out


def test_the_embedded_server_starts_and_stops_on_command(abo, monkeypatch):
    monkeypatch.delenv("ABO_DATABASE_URL")

    said = [abo("db", word)[1].split()[0] for word in ("status", "start", "status", "stop", "stop")]

    assert said == ["not", "running", "running,", "stopped", "it"]


def test_a_bar_moves_at_the_terminal_while_a_partition_is_embedded(run, database_url):
    """Were a step's output captured, Dagster would copy it to the terminal when it likes, or not before its end."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"ABO_DATABASE_URL": database_url, "ABO_DEVICE": "cpu", "TERM": "xterm"}
    # As slowly as it can.
    environment |= {"ABO_PREPARATION": "model", "ABO_PRECISION": "float32"}
    words = [*map(str, run), "--partitions", "1", "--batch-size", "1", "--until", "image_embeddings"]
    shown = b""

    with subprocess.Popen([ABO, *words], env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        # Linux reports the end of a terminal as an error.
        with contextlib.suppress(OSError):
            while some := os.read(ours, 65_536):
                shown += some
    os.close(ours)

    assert process.returncode == 0
    states = set(re.findall(r"embedding[^\r\n]* (\d+)/\d+ images", shown.decode()))
    assert len(states) > 2


def test_a_run_that_is_killed_in_the_middle_loses_nothing_and_redoes_nothing(abo, tmp_path, database_url):
    sample = draw_sample(tmp_path / "sample", images=160, seed=3)
    words = [
        *("run", "--archive", sample.archive, "--listings", "none", "--model", "small-clip"),
        *("--sizes", "50,100", "--partitions", "16"),
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
    assert f"embedded {len(after) - len(before)}, {len(before)} were there already, failed " in out
    assert f"kept {kept} = embedded {len(after)} + failed 2" in out
    assert len(after) == kept - 2
    assert {image_id: after[image_id] for image_id in before} == before
    engine.dispose()
