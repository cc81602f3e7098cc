"""The log of a fault of our own: what happened, with versions, for a report.

Knows: the file's name and contents.
Does not know: how the user is told.
"""

import os
import platform
import sys
import time
import traceback
from pathlib import Path

from moerun import __version__
from moerun.places import log_folder


def write_fault_log(error: BaseException) -> Path:
    """Write the traceback to a new file for this user alone and return its path."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = log_folder() / f"fault-{stamp}-{os.getpid()}.log"
    lines = (
        f"moerun {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"arguments: {sys.argv[1:]!r}",
        "",
        "".join(traceback.format_exception(error)),
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write("\n".join(lines))
    return path
