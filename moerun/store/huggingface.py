"""Repositories of Hugging Face: what they list, and which files a name means.

Beliefs: `GET /api/models/USER/REPO/revision/REV` tells the commit, and `.../tree/COMMIT` with
`recursive=true` the files with size and digest, in pages that `Link` joins; `X-Error-Code` tells a
gated repository from an unknown one - the hub's API as huggingface_hub 2.4.0 uses it - checked by
tests/test_huggingface.py against a server that does the same.

Knows: the listing API, split names, which file goes by which quantization.
Does not know: how files are fetched, or where they go.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urljoin

from moerun.errors import (
    AccessDenied,
    MissingShard,
    ModelNotFound,
    Unreachable,
    UsageError,
    WrongContent,
)
from moerun.store.fetching import refusal
from moerun.store.file_names import COMPANION, SHARD, label_of
from moerun.store.http_client import Channel, Reply
from moerun.store.http_connection import Patience, host_of, origin_of
from moerun.store.hub_settings import HubSettings
from moerun.store.references import HuggingFaceReference, repository_file_parts
from moerun.store.remote_file import Digest, DigestKind, RemoteFile

_MAIN: Final = "main"
_LISTING_BYTES: Final = 1 << 25
_MOST_PAGES: Final = 100
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_NEXT: Final = re.compile(r'<(?P<url>[^>]+)>;\s*rel="?next"?')
_DEFAULTS: Final = ("Q4_K_M", "Q8_0")  # in the order in which llama.cpp prefers them
_MOST_LABELS_SHOWN: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """What a repository holds at one commit."""

    name: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]


def list_repository(
    reference: HuggingFaceReference, hub: HubSettings, *, patience: Patience | None = None
) -> Repository:
    """Ask the host what a repository holds; raises a PullError, or ModelNotFound."""
    if hub.is_offline:
        raise Unreachable(
            f"HF_HUB_OFFLINE is set, so {host_of(hub.endpoint)} is not asked for {reference}",
            hint="unset HF_HUB_OFFLINE to download",
        )
    revision = reference.revision or _MAIN
    base = f"{hub.endpoint}/api/models/{reference.repository}"
    with Channel(patience=patience, credentials=hub.credentials, is_asking=True) as channel:
        told, _ = _ask(channel, f"{base}/revision/{quote(revision, safe='')}", reference, hub)
        commit = told.get("sha") if isinstance(told, dict) else None
        if not isinstance(commit, str) or _COMMIT.fullmatch(commit) is None:
            raise WrongContent(f"{host_of(base)} tells no commit of {reference.repository}")
        entries: list[Any] = []
        url: str | None = f"{base}/tree/{commit}?recursive=true"
        for _ in range(_MOST_PAGES):
            if url is None:
                break
            page, url = _ask(channel, url, reference, hub)
            if not isinstance(page, list):
                raise WrongContent(f"{host_of(base)} lists no files of {reference.repository}")
            entries += page
    prefix = f"{hub.endpoint}/{reference.repository}/resolve/{commit}"
    files = tuple(file for entry in entries if (file := _file(entry, prefix)) is not None)
    return Repository(name=reference.repository, revision=revision, commit=commit, files=files)


def choose_files(repository: Repository, reference: HuggingFaceReference) -> tuple[RemoteFile, ...]:
    """Return the files of the one model that a name means, in order of their parts."""
    models = _models(repository.files)
    if not models:
        raise ModelNotFound(
            f"{repository.name} holds no GGUF files",
            hint="look for a repository of the model whose name ends in -GGUF",
        )
    chosen = _chosen(models, reference)
    if chosen is None:
        what = reference.file or reference.quantization
        raise ModelNotFound(
            f"{repository.name} has no {what}", hint=f"it has {_said(labels(repository))}"
        )
    match = SHARD.fullmatch(chosen[0].name)
    if match is not None and len(chosen) != int(match["count"]):
        raise MissingShard(
            f"{repository.name} holds {len(chosen)} of the {int(match['count'])} parts of "
            f"{match['stem']}; choose another quantization"
        )
    return chosen


def labels(repository: Repository) -> tuple[str, ...]:
    """Return the quantizations that a repository has, as its files spell them."""
    found = (label_of(files[0].name) for files in _models(repository.files))
    return tuple(dict.fromkeys(label for label in found if label is not None))


def _models(files: Iterable[RemoteFile]) -> tuple[tuple[RemoteFile, ...], ...]:
    """Group the model files: the parts of a split one belong together."""
    groups: dict[str, list[RemoteFile]] = {}
    for file in files:
        base = file.name.rpartition("/")[2]
        if not base.lower().endswith(".gguf") or COMPANION.search(base):
            continue
        match = SHARD.fullmatch(file.name)
        key = f"{match['stem']}*{match['count']}" if match is not None else file.name
        groups.setdefault(key, []).append(file)
    ordered = (tuple(sorted(group, key=lambda file: file.name)) for group in groups.values())
    return tuple(sorted(ordered, key=lambda group: (len(group[0].name), group[0].name)))


def _chosen(
    models: tuple[tuple[RemoteFile, ...], ...], reference: HuggingFaceReference
) -> tuple[RemoteFile, ...] | None:
    if reference.file is not None:
        return _by_file(models, reference.file)
    if reference.quantization is not None:
        return _by_label(models, reference.quantization)
    for label in _DEFAULTS:
        if (found := _by_label(models, label)) is not None:
            return found
    return models[0]


def _by_file(
    models: tuple[tuple[RemoteFile, ...], ...], wanted: str
) -> tuple[RemoteFile, ...] | None:
    wanted = wanted.lower()
    for model in models:
        if any(file.name.lower() == wanted for file in model):
            return model
    for model in models:
        if any(file.name.lower().rpartition("/")[2] == wanted for file in model):
            return model
    return None


def _by_label(
    models: tuple[tuple[RemoteFile, ...], ...], label: str
) -> tuple[RemoteFile, ...] | None:
    """Return the first model with the label as a word of its own in its path, in any case.

    Models are ordered by length, so that Q4_K_XL is found before UD-Q4_K_XL, which has a name.
    """
    word = re.compile(rf"(?:^|[-._/]){re.escape(label)}(?=[-./])", re.I)
    return next((model for model in models if word.search(model[0].name)), None)


def _file(entry: Any, prefix: str) -> RemoteFile | None:
    """Return an entry as a file; None for folders, and for what no cache could hold."""
    if not isinstance(entry, Mapping) or entry.get("type") != "file":
        return None
    path, size, large = entry.get("path"), entry.get("size"), entry.get("lfs")
    digest, kind = entry.get("oid"), DigestKind.GIT
    if isinstance(large, Mapping):
        digest, size, kind = large.get("oid"), large.get("size"), DigestKind.SHA256
    if not isinstance(path, str) or not isinstance(digest, str) or not isinstance(size, int):
        return None
    if isinstance(size, bool) or not 0 <= size < 1 << 62:
        return None
    try:
        repository_file_parts(path)
        return RemoteFile(
            name=path,
            url=f"{prefix}/{quote(path)}",
            size_bytes=size,
            digest=Digest(kind=kind, hexadecimal=digest.removeprefix("sha256:")),
        )
    except (UsageError, WrongContent):
        return None


def _ask(
    channel: Channel, url: str, reference: HuggingFaceReference, hub: HubSettings
) -> tuple[Any, str | None]:
    """Return a JSON answer and the address of its next page."""
    reply = channel.get(url, headers={"Accept": "application/json"})
    if reply.status != 200:
        raise _refused(reply, reference, hub)
    try:
        value = json.loads(channel.read(_LISTING_BYTES))
    except (ValueError, RecursionError) as error:
        raise WrongContent(
            f"{host_of(url)} answers something other than a listing of {reference.repository}"
        ) from error
    match = _NEXT.search(reply.header("link") or "")
    following = urljoin(url, match["url"]) if match is not None else None
    if following is not None and origin_of(following) != origin_of(hub.endpoint):
        raise WrongContent(f"{host_of(url)} continues its listing at {host_of(following)}")
    return value, following


def _refused(reply: Reply, reference: HuggingFaceReference, hub: HubSettings) -> Exception:
    """Return what an answer means that is no listing: unknown, closed, or not now."""
    code = reply.header("x-error-code") or ""
    page = f"{hub.endpoint}/{reference.repository}"
    if code == "GatedRepo" or (reply.status == 403 and code != "RepoNotFound"):
        return AccessDenied(
            f"{reference.repository} is given out only to those who accepted its terms",
            hint=f"accept them at {page} and set HF_TOKEN to a token of yours",
        )
    if code == "RevisionNotFound":
        return ModelNotFound(f"{reference.repository} has no revision '{reference.revision}'")
    if reply.status in (401, 404) or code == "RepoNotFound":
        # The hub says 401 of what does not exist and of what is private alike.
        token = "with this token " if hub.credentials is not None else ""
        return ModelNotFound(
            f"{host_of(hub.endpoint)} shows {token}no repository {reference.repository}",
            hint="check its name; a private one needs HF_TOKEN",
        )
    return refusal(reply, f"the listing of {reference.repository}")


def _said(found: tuple[str, ...]) -> str:
    if not found:
        return "files without a label; name one as user/repo:file.gguf"
    more = f" and {len(found) - _MOST_LABELS_SHOWN} more" if len(found) > _MOST_LABELS_SHOWN else ""
    return ", ".join(found[:_MOST_LABELS_SHOWN]) + more
