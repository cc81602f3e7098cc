"""The headers of models that lie at a host: a few MB of each part, and no tensor.

The first part of a model holds its vocabulary, some 6 to 15 MB; the others only say which tensors
they have. So a first reach is made, and a longer one until the header is whole.

Knows: how much is asked for at first, and when to stop.
Does not know: what a header means, or which files make a model.
"""

from typing import Final

from moerun.errors import NotGguf, WrongContent
from moerun.model.assembly import assemble
from moerun.model.description import Model
from moerun.model.gguf_file import MAGIC, HeaderEndsEarly, read_prefix
from moerun.model.gguf_header import Header, check_complete
from moerun.model.gguf_values import GgufFile
from moerun.store.fetching import refusal
from moerun.store.http_client import Channel, Credentials
from moerun.store.http_connection import Patience, host_of
from moerun.store.hub_settings import HubSettings, read_hub_settings
from moerun.store.huggingface import choose_files, list_repository
from moerun.store.references import HuggingFaceReference, OllamaReference
from moerun.store.registry import fetch_manifest
from moerun.store.remote_file import RemoteFile
from moerun.units import MIB

RemoteReference = HuggingFaceReference | OllamaReference

_FIRST_REACH_BYTES: Final = 4 * MIB
_LATER_REACH_BYTES: Final = MIB // 4
_FARTHEST_BYTES: Final = 128 * MIB  # the largest known vocabulary takes some 15 MB


def remote_model(
    reference: RemoteReference,
    *,
    hub: HubSettings | None = None,
    patience: Patience | None = None,
) -> Model:
    """Return what a model at a host is, from its headers alone; raises PullError and ModelError."""
    return assemble(remote_header(reference, hub=hub, patience=patience).files)


def remote_header(
    reference: RemoteReference,
    *,
    hub: HubSettings | None = None,
    patience: Patience | None = None,
) -> Header:
    """Return the header of a model at a host; its long arrays cannot be iterated."""
    files, credentials = _files_of(reference, hub, patience)
    with Channel(patience=patience, credentials=credentials) as channel:
        headers = tuple(
            _read_header(channel, file, reference, index) for index, file in enumerate(files)
        )
    if len(headers) > 1:
        check_complete(headers)
    return Header(files=headers)


def _files_of(
    reference: RemoteReference, hub: HubSettings | None, patience: Patience | None
) -> tuple[tuple[RemoteFile, ...], Credentials | None]:
    if isinstance(reference, OllamaReference):
        manifest = fetch_manifest(reference, patience=patience)
        return (manifest.model_file,), manifest.credentials
    hub = hub or read_hub_settings()
    repository = list_repository(reference, hub, patience=patience)
    return choose_files(repository, reference), hub.credentials


def _read_header(
    channel: Channel, file: RemoteFile, reference: RemoteReference, index: int
) -> GgufFile:
    """Read the header of one file from as much of its beginning as that takes."""
    prefix = b""
    reach_bytes = _LATER_REACH_BYTES if index else _FIRST_REACH_BYTES
    while True:
        prefix += _range(channel, file, len(prefix), min(reach_bytes, file.size_bytes))
        try:
            if prefix[:4] != MAGIC:
                raise NotGguf(f"{file.name} of {reference} is no GGUF file")
            return read_prefix(
                prefix,
                path=f"{reference}/{file.name}",
                size_bytes=file.size_bytes,
                file_index=index,
            )
        except HeaderEndsEarly as error:
            if len(prefix) >= min(_FARTHEST_BYTES, file.size_bytes):
                raise NotGguf(
                    f"the header of {file.name} is not whole after {len(prefix):,} bytes"
                ) from error
        reach_bytes *= 2


def _range(channel: Channel, file: RemoteFile, start: int, end: int) -> bytes:
    """Return the bytes of a file from `start` to `end` (exclusive)."""
    if start >= end:
        return b""
    reply = channel.get(file.url, headers={"Range": f"bytes={start}-{end - 1}"})
    if reply.status not in (200, 206):
        raise refusal(reply, file.name)
    is_range = reply.status == 206
    if is_range and not (reply.header("content-range") or "").startswith(f"bytes {start}-"):
        raise WrongContent(f"{host_of(reply.url)} sends other bytes of {file.name} than were asked")
    # A host without ranges sends all from the beginning: what is needed is read, the rest is not.
    wanted = memoryview(bytearray(end - start if is_range else end))
    channel.read_into(wanted)
    if not is_range:
        channel.close()
    return bytes(wanted if is_range else wanted[start:])
