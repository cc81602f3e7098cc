"""Settings as values: what every layer together asks for, and where each value was set.

Knows: the nouns.
Does not know: files, variables, flags, or how values are written.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from moerun.planning.strategy import Strategy

DEFAULT_ORIGIN: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that can be set: what is wanted of memory, and the workers that may help."""

    strategy: Strategy = field(default_factory=Strategy)
    workers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """What a model itself asks for, by the short names of keys; `origin` is what it is called."""

    origin: str
    values: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSettings:
    """Settings with the origin of each key: `default`, file and line, a variable or a flag.

    `notes` name variables that look like a setting and are none.
    """

    settings: Settings
    origins: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    def origin(self, key: str) -> str:
        """Return where a key was set."""
        return dict(self.origins).get(key, DEFAULT_ORIGIN)
