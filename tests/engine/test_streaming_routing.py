"""The model of `make bench-stream` is as cacheable as what was recorded of a real one."""

import pytest

from benchmarks.streaming_check import run_script
from benchmarks.streaming_models import open_model
from tests.test_streaming_routing import RECORDED

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")  # 5.2 GB


def test_the_skewed_script_hits_like_the_trace(folder, tmp_path):
    found = run_script(open_model("skewed", folder), tmp_path)
    assert found.hit_fractions == pytest.approx(RECORDED, abs=0.03)
    assert found.foretold_fraction == pytest.approx(0.886, abs=0.03)


def test_the_uniform_script_gives_a_cache_little_more_than_its_share(folder, tmp_path):
    found = run_script(open_model("uniform", folder), tmp_path)
    assert found.hit_fractions == pytest.approx((0.1, 0.3, 0.5), abs=0.05)
