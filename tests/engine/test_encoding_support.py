"""The encodings that are let through are computed by the engine; those refused are not."""

import subprocess
import sys

import pytest

from moerun.model.encodings import ENCODINGS
from moerun.model.support import ALLOWED
from moerun.model.tensor_names import Operation

pytestmark = pytest.mark.engine

COMPUTED = (Operation.MATRIX, Operation.EXPERT_MATRIX, Operation.LOOKUP, Operation.ELEMENTWISE)


def computed(operation: Operation, encodings: list[str]) -> list[str]:
    """Return the encodings with which a child decoded a token before it ended."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.engine.encoding_model", operation.name, *encodings],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        # ggml prints a trace through a debugger when it aborts, which takes seconds
        env={"PATH": "", "GGML_NO_BACKTRACE": "1"},
    )
    return child.stdout.split()


@pytest.mark.parametrize("operation", COMPUTED)
def test_what_is_let_through_is_computed(operation: Operation):
    allowed = sorted(ALLOWED[operation])
    assert computed(operation, allowed) == allowed


@pytest.mark.parametrize("operation", COMPUTED)
def test_what_is_refused_is_not_computed(operation: Operation):
    refused = sorted({e.name for e in ENCODINGS.values()} - ALLOWED[operation])
    if operation is Operation.ELEMENTWISE:
        # one of each kind: every abort costs a process
        refused = ["BF16", "F16", "F64", "I32", "Q8_0"]
    assert [e for e in refused if computed(operation, [e])] == []
