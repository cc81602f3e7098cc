"""Where moerun keeps what is the user's: settings, state, logs, models.

Knows: the customs of each system, and the variables that overrule them.
Does not know: what is kept there.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from moerun.errors import MoerunError

CONFIG_VARIABLE: Final = "MOERUN_CONFIG_DIR"
STATE_VARIABLE: Final = "MOERUN_STATE_DIR"
MODELS_VARIABLE: Final = "MOERUN_MODELS"
_PRIVATE_MODE: Final = 0o700


def config_folder(
    environment: Mapping[str, str] | None = None, *, platform: str = sys.platform
) -> Path:
    """Return where the user's settings lie; nothing is made, since nothing is written there."""
    environment = os.environ if environment is None else environment
    if overruled := environment.get(CONFIG_VARIABLE):
        return _absolute(overruled)
    return _base(environment, platform, "XDG_CONFIG_HOME", ".config", "APPDATA") / "moerun"


def state_folder(
    environment: Mapping[str, str] | None = None, *, platform: str = sys.platform
) -> Path:
    """Return where runners leave their records; made, for this user alone, when it is absent."""
    return _private(_state_path(os.environ if environment is None else environment, platform))


def log_folder(
    environment: Mapping[str, str] | None = None, *, platform: str = sys.platform
) -> Path:
    """Return where logs go, a folder within the state; made when it is absent."""
    return _private(
        _state_path(os.environ if environment is None else environment, platform) / "logs"
    )


def models_folder(
    environment: Mapping[str, str] | None = None, *, platform: str = sys.platform
) -> Path:
    """Return where moerun keeps models of its own; nothing is made."""
    environment = os.environ if environment is None else environment
    if overruled := environment.get(MODELS_VARIABLE):
        return _absolute(overruled)
    base = _base(environment, platform, "XDG_DATA_HOME", ".local/share", "LOCALAPPDATA")
    return base / "moerun" / "models"


def working_folder() -> Path:
    """Return the folder the program was started in; MoerunError when it was removed since."""
    try:
        return Path.cwd()
    except OSError as error:
        raise MoerunError(
            f"the folder this was started in is not there: {error.strerror or error}",
            hint="change to another folder and start again",
        ) from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write or replace a file, whole or not at all, for this user alone; raises OSError."""
    import tempfile  # with much that a command that only reads does not need

    # mkstemp makes the file for this user alone.
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _state_path(environment: Mapping[str, str], platform: str) -> Path:
    if overruled := environment.get(STATE_VARIABLE):
        return _absolute(overruled)
    return _base(environment, platform, "XDG_STATE_HOME", ".local/state", "LOCALAPPDATA") / "moerun"


def _base(
    environment: Mapping[str, str],
    platform: str,
    xdg_variable: str,
    below_home: str,
    windows_variable: str,
) -> Path:
    """Return the folder that the system means for one purpose."""
    if platform == "win32":
        if folder := environment.get(windows_variable):
            return Path(folder)
        roaming = "Roaming" if windows_variable == "APPDATA" else "Local"
        return _home(environment) / "AppData" / roaming
    # By the XDG rules a relative path in the variable is to be ignored.
    folder = environment.get(xdg_variable, "")
    if os.path.isabs(folder):
        return Path(folder)
    if platform == "darwin":
        return _home(environment) / "Library" / "Application Support"
    return _home(environment) / below_home


def _home(environment: Mapping[str, str]) -> Path:
    if home := environment.get("HOME") or environment.get("USERPROFILE"):
        return Path(home)
    try:
        return Path.home()
    except RuntimeError as error:  # a user without an entry in the system's list
        raise MoerunError(
            "the home folder of this user is not known",
            hint=f"set {CONFIG_VARIABLE} and {STATE_VARIABLE} to folders of your own",
        ) from error


def _absolute(folder: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(folder)))


def _private(folder: Path) -> Path:
    """Make a folder and those above it, for this user alone; one that exists stays as it is."""
    try:
        for part in (*reversed(folder.parents), folder):
            if not part.exists():
                part.mkdir(mode=_PRIVATE_MODE, exist_ok=True)
        if not folder.is_dir():
            raise NotADirectoryError(20, "it is not a folder")
    except OSError as error:
        raise MoerunError(
            f"the folder {folder} cannot be made: {error.strerror or error}",
            hint=f"set {STATE_VARIABLE} to a folder that you may write to",
        ) from error
    return folder
