"""A process that asks the engine's quantizer what it would make of a file, without doing it.

`python -m tests.engine.quantizer_child FILE LABEL...` prints one JSON object: for each label the
encoding of each tensor, as the log of a dry run names it. Labels of i-quants are asked for with an
importance matrix.

Knows: the quantizer's parameters, and the lines of its log.
Does not know: its rules.
"""

import ctypes
import json
import re
import sys

import llama_cpp

from moerun.model.encodings import FILE_TYPES

_LINE = re.compile(
    r"\[ *\d+/ *\d+\] (?P<name>\S+) +- \[.*?\], type = +(?P<old>\w+), size = .*?"
    r"(?:\((?P<new>\w+)\))?$"
)


def types_of(path: str, label: str) -> dict[str, str]:
    """Return the encoding of each tensor in a file of that label."""
    lines: list[bytes] = []
    keep = llama_cpp.llama_log_callback(lambda level, text, data: lines.append(text))
    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = next(number for number, name in FILE_TYPES.items() if name == label)
    parameters.dry_run = True
    parameters.nthread = 1
    one = (ctypes.c_float * 1)(1.0)
    entries = (llama_cpp.llama_model_imatrix_data * 2)()
    entries[0].name, entries[0].data, entries[0].size = b"of nothing", one, 1
    if label.startswith("IQ"):
        parameters.imatrix = ctypes.cast(entries, type(parameters.imatrix))
    refused = llama_cpp.llama_model_quantize(path.encode(), b"/dev/null", ctypes.byref(parameters))
    log = b"".join(lines).decode(errors="replace")
    if refused:
        sys.exit(f"{label}: {log[-2000:]}")
    found = {}
    for line in log.splitlines():
        if (match := _LINE.match(line)) is not None:
            found[match["name"]] = (match["new"] or match["old"]).upper()
    return found


if __name__ == "__main__":
    file, *labels = sys.argv[1:]
    sys.stdout.write(json.dumps({label: types_of(file, label) for label in labels}))
