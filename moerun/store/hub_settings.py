"""What the environment says about Hugging Face: host, token, cache, and whether it may be asked.

The variables are those of huggingface_hub, so that what a user set up for other programs holds
here: `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`.

Knows: those variables, their order, and where the token may go.
Does not know: what the host answers, or what is in the cache.
"""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from moerun.errors import UsageError
from moerun.store.http_client import Credentials
from moerun.store.http_connection import origin_of
from moerun.store.hub_folders import hub_cache, hub_home

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
_YES: Final = frozenset({"1", "on", "yes", "true"})
_LONGEST_TOKEN_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """How Hugging Face is reached, and where its files are kept."""

    endpoint: str
    cache: Path
    credentials: Credentials | None
    is_offline: bool


def read_hub_settings(environment: Mapping[str, str] | None = None) -> HubSettings:
    """Return what the environment says; UsageError when it cannot be meant."""
    environment = os.environ if environment is None else environment
    endpoint = (environment.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(endpoint)
        is_sound = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
        is_sound = is_sound and (parts.port or 1) > 0
    except ValueError:
        is_sound = False
    if not is_sound or not endpoint.isascii():
        raise UsageError(
            f"HF_ENDPOINT: '{endpoint}' is not the address of a host; write https://host"
        )
    token = _token(environment) if parts.scheme == "https" or _is_here(parts.hostname) else None
    return HubSettings(
        endpoint=endpoint,
        cache=hub_cache(environment),
        credentials=Credentials(origin=origin_of(endpoint), token=token) if token else None,
        is_offline=environment.get("HF_HUB_OFFLINE", "").strip().lower() in _YES,
    )


def _token(environment: Mapping[str, str]) -> str | None:
    """Return the user's token: of the variable, else of the file that `hf auth login` writes."""
    token = environment.get("HF_TOKEN") or environment.get("HUGGING_FACE_HUB_TOKEN")
    if not token:
        named = environment.get("HF_TOKEN_PATH")
        path = Path(named).expanduser() if named else hub_home(environment) / "token"
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                token = file.read(_LONGEST_TOKEN_BYTES)
        except OSError:
            return None
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("HF_TOKEN is no token of Hugging Face: it holds blanks or odd characters")
    return token or None


def _is_here(host: str | None) -> bool:
    """Whether a host is this machine, where a token needs no encryption."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
