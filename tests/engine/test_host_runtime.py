"""What a runner's process takes beside buffers, against what plans charge for it."""

import sys
from pathlib import Path

import pytest

from moerun.model.gguf_header import read_model
from moerun.planning.fixed_charges import host_runtime
from moerun.planning.strategy import LoadMode
from moerun.runner.parent import Runner
from tests.engine.builders import arguments
from tests.engine.conftest import DEMO_FILE
from tests.tiny_models import write_tiny_model

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(sys.platform != "linux", reason="mappings are told by Linux"),
]

TOKENS = 100_000
SMALL_BATCH = 16  # so that buffers for computing are next to nothing


@pytest.fixture(params=["demo", "a large vocabulary"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "demo":
        return DEMO_FILE
    return write_tiny_model(tmp_path / "words.gguf", "qwen3moe", vocabulary=TOKENS)


def test_a_process_takes_most_of_what_is_charged_and_no_more(file: Path, tmp_path: Path):
    model = read_model(file)
    args = arguments(
        file, load_mode=LoadMode.COPY, batch_tokens=SMALL_BATCH, ubatch_tokens=SMALL_BATCH
    )
    with Runner(log_folder=tmp_path) as runner:
        report = runner.load(args)
        sample = runner.sample_statistics((str(file),))
    assert sample is not None
    assert sample.model_resident_bytes is not None
    assert sample.file_backed_bytes is not None
    assert sample.private_bytes is not None
    code_bytes = sample.file_backed_bytes - sample.model_resident_bytes
    buffer_bytes = sum(buffer.size_bytes for buffer in report.buffers)
    taken_bytes = sample.private_bytes + code_bytes - buffer_bytes
    charged_bytes = host_runtime(model, ()).size_bytes

    assert 0.5 * charged_bytes < taken_bytes <= charged_bytes
