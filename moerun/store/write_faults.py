"""What the file system refuses while the own store is changed, as a sentence.

A folder that is read-only, a file in its place, a full disk: none is a fault of moerun.

Knows: which setting leads to another folder.
Does not know: what was being written.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moerun.errors import ModelError


@contextmanager
def told_as_refusals(root: Path) -> Iterator[None]:
    """Raise ModelError for an OSError of what is done to the store at `root`."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ModelError(
            f"the store {root} cannot be changed: {error.strerror or error}{where}",
            hint="MOERUN_MODELS names another folder",
        ) from error
