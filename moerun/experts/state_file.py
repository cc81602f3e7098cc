"""Documents with a schema number in the state folder: whole or not at all, for this user alone.

Knows: how a document is written and read, and what a reader makes of a newer one.
Does not know: what the documents say.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

from moerun.codec import from_plain, to_plain
from moerun.places import write_whole

Value = TypeVar("Value")


def write_value(path: Path, value: object, *, schema: int) -> str | None:
    """Write or replace a document; return a sentence when it cannot be written.

    What is learned makes the next run faster and no more, so a full disk is no error.
    """
    document = {"schema": schema, **to_plain(value)}
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, json.dumps(document))
    except OSError as error:
        return f"{path} cannot be written ({error.strerror or error}); the next run learns again"
    return None


def read_value(path: Path, kind: type[Value], *, schema: int) -> tuple[Value | None, str | None]:
    """Return what a document says and a note; both are None where there is no document.

    One of a newer schema or none of ours is passed over, and the note says so. One of an older
    schema reads as it is: what was added since has a default.
    """
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, RecursionError) as error:
        return None, f"{path} is ignored: {error}"
    try:
        if not isinstance(document, dict):
            raise ValueError("it is not an object")
        found = document.pop("schema", None)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise ValueError("it has no schema number")
        if found > schema:
            raise ValueError(f"it has schema {found} of a newer moerun; this one knows {schema}")
        return from_plain(kind, document), None
    except ValueError as error:
        return None, f"{path} is ignored: {error}"
