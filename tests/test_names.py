import pytest

from moerun.errors import ModelNotFound
from moerun.store.names import DEMO, demo_path, models_at_hand, resolve_model


@pytest.fixture
def places(tmp_path):
    here, mine = tmp_path / "here", tmp_path / "mine"
    here.mkdir()
    mine.mkdir()
    for path in (
        here / "qwen3-30b.gguf",
        here / "both.gguf",
        here / "big-00001-of-00002.gguf",
        here / "big-00002-of-00002.gguf",
        here / "mmproj-qwen.gguf",
        here / "notes.txt",
        mine / "both.gguf",
        mine / "Mixtral.gguf",
    ):
        path.touch()
    (here / "folder.gguf").mkdir()
    return here, mine


def resolve(name, places):
    here, mine = places
    return resolve_model(name, folder=here, environment={"MOERUN_MODELS": str(mine)})


def test_models_at_hand_are_files_of_both_folders_once_each(places):
    here, mine = places
    found = models_at_hand(folder=here, environment={"MOERUN_MODELS": str(mine)})
    names = [model.name for model in found if model.name != DEMO]
    assert names == ["big", "both", "qwen3-30b", "Mixtral"]
    by_name = {model.name: model.path for model in found}
    assert by_name["both"].parent == here
    assert by_name["big"].name == "big-00001-of-00002.gguf"


def test_names_paths_and_other_cases_are_found(places):
    here, mine = places
    assert resolve("qwen3-30b", places) == here / "qwen3-30b.gguf"
    assert resolve("qwen3-30b.gguf", places) == here / "qwen3-30b.gguf"
    assert resolve("mixtral", places) == mine / "Mixtral.gguf"
    assert resolve(str(mine / "both.gguf"), places) == mine / "both.gguf"
    assert resolve("big", places).name == "big-00001-of-00002.gguf"


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("qwen3-3b", "No model at hand", "qwen3-30b"),
        ("qwen3-30.gguf", "no file", "qwen3-30b"),
        ("sub/none.gguf", "no file", "moerun plan"),
        ("zzzz", "No model at hand", "moerun plan"),
        ("folder.gguf", "is a folder", "moerun plan"),
        (" ", "empty", "moerun plan"),
        ("a" * 5000, "cannot be a path: File name too long", "moerun plan"),
        ("~no-such-user-here/m.gguf", "cannot be a path", "moerun plan"),
    ],
)
def test_what_is_not_there_is_one_sentence_with_what_comes_closest(places, name, message, hint):
    with pytest.raises(ModelNotFound, match=message) as error:
        resolve(name, places)
    assert hint in (error.value.hint or "")


def test_a_folder_points_to_a_model_within(places):
    here, _ = places
    with pytest.raises(ModelNotFound, match="is a folder") as error:
        resolve(str(here), places)
    assert "big-00001-of-00002.gguf" in (error.value.hint or "")


def test_the_demo_is_package_data():
    assert demo_path().parts[-3:] == ("data", "demo", "demo.gguf")


def test_a_folder_of_models_that_is_absent_has_none(tmp_path):
    found = models_at_hand(folder=tmp_path, environment={"MOERUN_MODELS": str(tmp_path / "no")})
    assert all(model.name == DEMO for model in found)
