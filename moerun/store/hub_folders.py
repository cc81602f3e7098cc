"""Where programs of Hugging Face keep what they download on this machine.

The variables are those of huggingface_hub: `HF_HUB_CACHE`, `HF_HOME`.

Knows: those variables and their order.
Does not know: hosts, tokens, or what is in the folders.
"""

import os
from collections.abc import Mapping
from pathlib import Path


def hub_cache(environment: Mapping[str, str] | None = None) -> Path:
    """Return the folder of the cache, which need not be there."""
    environment = os.environ if environment is None else environment
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if folder := environment.get(name):
            return Path(folder).expanduser().absolute()
    return hub_home(environment) / "hub"


def hub_home(environment: Mapping[str, str]) -> Path:
    """Return the folder of all that those programs keep, which need not be there."""
    if folder := environment.get("HF_HOME"):
        return Path(folder).expanduser().absolute()
    caches = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser().absolute() / "huggingface"
