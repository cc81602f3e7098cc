import os
import stat
from pathlib import Path

import pytest

from moerun.errors import MoerunError
from moerun.places import config_folder, log_folder, state_folder, working_folder, write_whole

HOME = {"HOME": "/home/ada"}


def test_variables_of_our_own_come_first(tmp_path: Path):
    environment = {
        "MOERUN_CONFIG_DIR": str(tmp_path / "c"),
        "MOERUN_STATE_DIR": str(tmp_path / "s"),
        "XDG_CONFIG_HOME": "/elsewhere",
        "XDG_STATE_HOME": "/elsewhere",
    }
    assert config_folder(environment) == tmp_path / "c"
    assert state_folder(environment) == tmp_path / "s"
    assert log_folder(environment) == tmp_path / "s/logs"


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", HOME, "/home/ada/.config/moerun"),
        ("linux", HOME | {"XDG_CONFIG_HOME": "/x"}, "/x/moerun"),
        ("linux", HOME | {"XDG_CONFIG_HOME": "relative"}, "/home/ada/.config/moerun"),
        ("darwin", HOME, "/home/ada/Library/Application Support/moerun"),
        ("win32", {"APPDATA": "/app"}, "/app/moerun"),
        ("win32", {"USERPROFILE": "/u"}, "/u/AppData/Roaming/moerun"),
    ],
)
def test_settings_lie_where_the_system_means(platform: str, environment: dict, expected: str):
    assert config_folder(environment, platform=platform) == Path(expected)


def test_reading_settings_makes_no_folder(tmp_path: Path):
    assert not config_folder({"HOME": str(tmp_path)}, platform="linux").parent.exists()


@pytest.mark.parametrize(
    ("platform", "below"),
    [
        ("linux", ".local/state/moerun"),
        ("darwin", "Library/Application Support/moerun"),
        ("win32", "AppData/Local/moerun"),
    ],
)
def test_state_is_made_for_this_user_alone(tmp_path: Path, platform: str, below: str):
    folder = state_folder({"HOME": str(tmp_path)}, platform=platform)
    assert folder == tmp_path / below
    logs = log_folder({"HOME": str(tmp_path)}, platform=platform)
    for made in (folder, folder.parent, logs):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_folder_that_exists_keeps_its_mode(tmp_path: Path):
    folder = tmp_path / "s"
    folder.mkdir(mode=0o755)
    os.chmod(folder, 0o755)
    state_folder({"MOERUN_STATE_DIR": str(folder)})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_a_working_folder_that_was_removed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    assert working_folder() == gone
    gone.rmdir()
    with pytest.raises(MoerunError, match="is not there"):
        working_folder()


def test_a_file_in_the_way_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/inner"):
        with pytest.raises(MoerunError, match="cannot be made") as caught:
            state_folder({"MOERUN_STATE_DIR": str(path)})
        assert "MOERUN_STATE_DIR" in (caught.value.hint or "")


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path):
    path = tmp_path / "document.json"
    write_whole(path, "first")
    write_whole(path, "second")
    assert path.read_text(encoding="utf-8") == "second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["document.json"]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "cut \ud800")
    assert path.read_text(encoding="utf-8") == "second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["document.json"]
