"""What the names of a repository's files tell: parts of a model, companions, quantizations.

Knows: the customs of those who publish GGUF files.
Does not know: hosts, folders, or what is in a file.
"""

import re
from typing import Final

SHARD: Final = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.I)
# What is no model by itself - common/download.cpp @ llama-cpp-python 0.3.36.
COMPANION: Final = re.compile(r"mmproj|imatrix|^(?:mtp|eagle3|dflash|dspark)-", re.I)
_LABEL: Final = re.compile(
    r"(?:^|[-._/])(?P<label>(?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|BF16|F16|F32))"
    r"(?=[-._/]|$)",
    re.I,
)


def label_of(path: str) -> str | None:
    """Return the quantization that a file's name tells, None when it tells none."""
    found = [match["label"] for match in _LABEL.finditer(path)]
    return found[-1] if found else None
