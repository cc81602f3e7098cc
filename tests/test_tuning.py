import json
import stat
from dataclasses import replace

import pytest

from moerun.experts.hot_set import hot_set_path, merged, read_hot_set, write_hot_set
from moerun.experts.interface import ExpertKey
from moerun.experts.tuning import Learned, TuningKey, read_tuning, tuning_path, write_tuning
from moerun.planning.strategy import StreamingMode
from tests.builders import GIB

KEY = TuningKey(
    model_digest="digest", machine_fingerprint="machine", engine_version="1", limit_bytes=8 * GIB
)
LEARNED = Learned(
    model_digest="digest",
    machine_fingerprint="machine",
    engine_version="1",
    limit_bytes=8 * GIB,
    mechanism=StreamingMode.PAGING,
    preload_experts=8,
    because="tried",
    reader_threads=4,
    read_bytes=1 << 20,
)


def test_what_was_learned_comes_back_for_this_user_alone(tmp_path):
    assert read_tuning(tmp_path, KEY) == (None, None)
    assert write_tuning(tmp_path, KEY, LEARNED) is None
    assert read_tuning(tmp_path, KEY) == (LEARNED, None)
    path = tuning_path(tmp_path, KEY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [child.name for child in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "changes",
    [
        {"model_digest": "other"},
        {"machine_fingerprint": "other"},
        {"engine_version": "2"},
        {"limit_bytes": 10 * GIB},
    ],
)
def test_it_is_of_one_model_machine_engine_and_limit(tmp_path, changes):
    write_tuning(tmp_path, KEY, LEARNED)
    assert read_tuning(tmp_path, replace(KEY, **changes)) == (None, None)


def test_a_limit_that_differs_little_is_the_same(tmp_path):
    write_tuning(tmp_path, KEY, LEARNED)
    near = replace(KEY, limit_bytes=8 * GIB + GIB // 2)
    assert read_tuning(tmp_path, near)[0] == LEARNED
    steps = [replace(KEY, limit_bytes=limit).limit_step for limit in range(1, 5000)]
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is ignored"),
        ("[1]", "not an object"),
        ("{}", "no schema number"),
        ('{"schema": 99, "new": 1}', "newer"),
        ('{"schema": 1}', "is ignored"),
    ],
)
def test_a_document_that_is_none_of_ours_is_noted(tmp_path, text, reason):
    write_tuning(tmp_path, KEY, LEARNED)
    tuning_path(tmp_path, KEY).write_text(text)
    learned, note = read_tuning(tmp_path, KEY)
    assert learned is None
    assert reason in str(note)


def test_a_winner_that_is_no_mechanism_is_noted(tmp_path):
    write_tuning(tmp_path, KEY, replace(LEARNED, mechanism=StreamingMode.OFF))
    assert read_tuning(tmp_path, KEY)[0] is None


def test_a_folder_that_takes_nothing_is_a_sentence(tmp_path):
    (tmp_path / "tuning").write_text("in the way")
    assert "cannot be written" in str(write_tuning(tmp_path, KEY, LEARNED))


def test_the_hottest_come_first_and_unused_ones_never():
    hot = merged("d", None, {0: [3, 0, 9], 4: [5, 1, 0]})
    assert hot.hottest(3) == (ExpertKey(0, 2), ExpertKey(4, 0), ExpertKey(0, 0))
    assert len(hot.hottest(100)) == 4


def test_earlier_uses_fade(tmp_path):
    first = merged("d", None, {0: [8, 0]})
    assert merged("d", first, {0: [0, 5]}).layers[0].uses == (4, 5)
    assert merged("d", first, {0: [1, 1, 1]}).layers[0].uses == (1, 1, 1)


def test_uses_are_kept_by_model(tmp_path):
    hot = merged("d", None, {0: [1, 2], 1: [3, 4]})
    assert write_hot_set(tmp_path, hot) is None
    assert read_hot_set(tmp_path, "d", {0: 2, 1: 2}) == (hot, None)
    assert read_hot_set(tmp_path, "other", {0: 2}) == (None, None)
    fewer, _ = read_hot_set(tmp_path, "d", {0: 2, 1: 5})
    assert fewer is not None
    assert [layer.layer for layer in fewer.layers] == [0]
    document = json.loads(hot_set_path(tmp_path, "d").read_text())
    hot_set_path(tmp_path, "d").write_text(json.dumps(document | {"schema": 7}))
    assert "newer" in str(read_hot_set(tmp_path, "d", {0: 2})[1])
