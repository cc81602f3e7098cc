"""Registries that speak Ollama's protocol: a manifest, and the blobs that it names.

Beliefs: `GET /v2/NAMESPACE/MODEL/manifests/TAG` answers a docker manifest whose layers are of the
types `application/vnd.ollama.image.*`; a blob is `/v2/NAMESPACE/MODEL/blobs/sha256:HEX` and may
lead to another host - server/download.go and server/images.go of ollama 0.12 - checked by
tests/test_pull.py against a server that does the same.

Knows: manifests, the types of layers, how a registry asks for a token.
Does not know: how files are fetched, or where they go.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from moerun.errors import (
    AccessDenied,
    ModelNotFound,
    UnsupportedModel,
    UsageError,
    WrongContent,
)
from moerun.store.fetching import refusal
from moerun.store.http_client import Channel, Credentials, Reply
from moerun.store.http_connection import Patience, host_of, origin_of
from moerun.store.references import OLLAMA_HOST, OllamaReference
from moerun.store.remote_file import Digest, DigestKind, RemoteFile

REGISTRY_VARIABLE: Final = "MOERUN_REGISTRY"
MODEL_TYPE: Final = "application/vnd.ollama.image.model"
_TENSOR_TYPE: Final = "application/vnd.ollama.image.tensor"
_MANIFEST_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
_MANIFEST_BYTES: Final = 4 << 20
_MOST_LAYERS: Final = 1000
_MOST_BYTES: Final = 1 << 62
_PARAMETER: Final = re.compile(r'(?P<name>[a-z]+)="(?P<value>[^"]*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One blob of a model and what it is for."""

    media_type: str
    file: RemoteFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A model as its registry describes it; `raw` is what is written down, byte for byte."""

    reference: OllamaReference
    raw: bytes
    layers: tuple[Layer, ...]  # the configuration among them
    credentials: Credentials | None

    @property
    def digest(self) -> str:
        """The digest by which ollama shows the model."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def model_file(self) -> RemoteFile:
        """The GGUF."""
        return next(layer.file for layer in self.layers if layer.media_type == MODEL_TYPE)


def fetch_manifest(reference: OllamaReference, *, patience: Patience | None = None) -> Manifest:
    """Ask a registry for a model; raises a PullError, ModelNotFound or UnsupportedModel."""
    url = f"{_base(reference)}/manifests/{reference.tag}"
    credentials = None
    with Channel(patience=patience, is_asking=True) as channel:
        reply = channel.get(url, headers={"Accept": _MANIFEST_TYPE})
        challenge = reply.header("www-authenticate")
        if reply.status == 401 and challenge is not None:
            credentials = _token(channel, challenge, url)
        else:
            return read_manifest(_body(channel, reply, reference), reference)
    with Channel(patience=patience, credentials=credentials, is_asking=True) as channel:
        reply = channel.get(url, headers={"Accept": _MANIFEST_TYPE})
        raw = _body(channel, reply, reference)
    return read_manifest(raw, reference, credentials=credentials)


def read_manifest(
    raw: bytes, reference: OllamaReference, *, credentials: Credentials | None = None
) -> Manifest:
    """Return what a manifest says, every part checked; it is a stranger's text."""
    base = _base(reference)
    try:
        value = json.loads(raw.decode())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, Mapping) or not isinstance(value.get("layers"), list):
        raise WrongContent(f"{reference.host} answers something other than a manifest")
    entries = [*value["layers"], *([value["config"]] if value.get("config") else [])]
    if len(entries) > _MOST_LAYERS:
        raise WrongContent(f"the manifest of {reference} has {len(entries):,} layers")
    layers = tuple(_layer(entry, base, reference) for entry in entries)
    count = sum(layer.media_type == MODEL_TYPE for layer in layers)
    if count != 1:
        of_tensors = any(layer.media_type == _TENSOR_TYPE for layer in layers)
        raise UnsupportedModel(
            f"{reference} "
            + ("is kept as single tensors" if of_tensors else f"has {count} GGUF files")
            + ", and only a model of one GGUF can be pulled from such a registry",
            hint="look for a GGUF of it at Hugging Face: hf.co/user/repo",
        )
    return Manifest(reference=reference, raw=raw, layers=layers, credentials=credentials)


def _base(reference: OllamaReference) -> str:
    """Return below which address a model lies; `MOERUN_REGISTRY` stands for ollama's own host."""
    origin = f"{reference.scheme}://{reference.host}"
    mirror = os.environ.get(REGISTRY_VARIABLE, "").strip().rstrip("/")
    if mirror and reference.host == OLLAMA_HOST:
        if not re.fullmatch(r"https?://[A-Za-z0-9.\[\]:-]+(?:/[A-Za-z0-9._/-]*)?", mirror):
            raise UsageError(
                f"{REGISTRY_VARIABLE}: '{mirror[:80]}' is not the address of a host",
                hint="write https://host, or https://host:port",
            )
        origin = mirror
    return f"{origin}/v2/{reference.namespace}/{reference.model}"


def _layer(entry: Any, base: str, reference: OllamaReference) -> Layer:
    if not isinstance(entry, Mapping):
        raise WrongContent(f"the manifest of {reference} has a layer that is none")
    kind, digest, size = entry.get("mediaType"), entry.get("digest"), entry.get("size")
    if (
        not isinstance(kind, str)
        or not isinstance(digest, str)
        or not isinstance(size, int)
        or isinstance(size, bool)
        or not 0 <= size < _MOST_BYTES
    ):
        raise WrongContent(f"the manifest of {reference} has a layer without digest or size")
    checked = Digest(
        kind=DigestKind.SHA256, hexadecimal=re.sub(r"\Asha256[:-]", "", digest, count=1)
    )
    file = RemoteFile(
        name=f"{kind.rpartition('.')[2][:20]} {checked.hexadecimal[:12]}",
        url=f"{base}/blobs/sha256:{checked.hexadecimal}",
        size_bytes=size,
        digest=checked,
    )
    return Layer(media_type=kind, file=file)


def _token(channel: Channel, challenge: str, url: str) -> Credentials:
    """Ask where the registry says for a token that anybody gets.

    It has to be the registry's own host: elsewhere, an answer of anyone on the way could have the
    token fetched for (CVE-2025-51471 of ollama).
    """
    told = {match["name"]: match["value"] for match in _PARAMETER.finditer(challenge)}
    realm = told.get("realm", "")
    if not challenge.lower().startswith("bearer ") or not realm:
        raise AccessDenied(f"{host_of(url)} wants to know who you are, and moerun cannot tell it")
    if origin_of(realm) != origin_of(url):
        raise AccessDenied(
            f"{host_of(url)} wants a token of {host_of(realm)}, and only its own are asked for"
        )
    asked = urlencode({name: told[name] for name in ("service", "scope") if name in told})
    reply = channel.get(f"{realm}?{asked}")
    if reply.status != 200:
        raise AccessDenied(f"{host_of(realm)} gives no token ({reply.status} {reply.reason})")
    try:
        answer = json.loads(channel.read(_MANIFEST_BYTES))
    except (ValueError, RecursionError):
        answer = None
    token = None
    if isinstance(answer, Mapping):
        token = answer.get("token") or answer.get("access_token")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise AccessDenied(f"{host_of(realm)} gives no token")
    return Credentials(origin=origin_of(url), token=token)


def _body(channel: Channel, reply: Reply, reference: OllamaReference) -> bytes:
    if reply.status != 200:
        raise _refused(reply, reference)
    return channel.read(_MANIFEST_BYTES)


def _refused(reply: Reply, reference: OllamaReference) -> Exception:
    if reply.status == 404:
        return ModelNotFound(
            f"{reference.host} has no {reference}",
            hint="its page lists the tags it has; hf.co/user/repo names one of Hugging Face",
        )
    if reply.status in (401, 403):
        return AccessDenied(
            f"{reference.host} does not give out {reference} ({reply.status} {reply.reason})",
            hint="only public models can be pulled from there",
        )
    return refusal(reply, f"the manifest of {reference}")
