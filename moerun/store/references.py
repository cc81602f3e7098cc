"""What a name of a model says, as a value: a path, a registry, a repository, or an entry here.

    qwen3-30b-a3b[:QUANT]                  an entry of the catalogue
    model[:tag]                            a model at hand, or one of the Ollama library
    host/namespace/model[:tag]             an Ollama registry (ollama.com/..., ollama://...)
    user/repo[@revision][:QUANT]           a Hugging Face repository (hf.co/..., hf://...)
    user/repo[@revision]:file.gguf         one file of it (hf.co/user/repo/folder/file.gguf)
    ./model.gguf, ~/m.gguf, C:\\m.gguf      a file

Every part is checked before it becomes a value, so that no part of a name can leave a store's
folder: none begins with a dot, holds a separator, or is a name that Windows keeps for a device.
Namespace and repository of two parts are Hugging Face's, as llama.cpp's `-hf` reads them; an
Ollama registry is meant where its host is named.

Knows: the grammar, and the parts of folders that names may become.
Does not know: which models exist, where stores lie, or the network.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from moerun.errors import ModelNotFound, UsageError

OLLAMA_HOST: Final = "registry.ollama.ai"
OLLAMA_NAMESPACE: Final = "library"
LATEST: Final = "latest"
HUGGING_FACE_HOST: Final = "huggingface.co"
GGUF_ENDING: Final = ".gguf"

_OLLAMA_HOSTS: Final = frozenset({OLLAMA_HOST, "ollama.com", "www.ollama.com", "ollama.ai"})
_HUGGING_FACE_HOSTS: Final = frozenset({HUGGING_FACE_HOST, "hf.co", "www.huggingface.co"})
_HUGGING_FACE_SCHEMES: Final = frozenset({"hf", "huggingface"})
_WEB_SCHEMES: Final = frozenset({"https", "http"})
_LONGEST_NAME: Final = 1024  # characters
_LISTING: Final = "`moerun plan` lists the models at hand and the catalogue"
_FORMS: Final = "names look like qwen3-30b-a3b, qwen3:30b, hf.co/user/repo:Q4_K_M or ./model.gguf"

# Rules of types/model/name.go of ollama; a colon in a host stands before its port only.
_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,343}(?::\d{1,5})?", re.ASCII)
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}", re.ASCII)
_MODEL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", re.ASCII)
# Rules of huggingface_hub's validate_repo_id: at most 96 characters, no dot or dash at an end,
# none doubled (which is what keeps `models--user--name` one folder for one repository).
_REPOSITORY_PART: Final = re.compile(
    r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?", re.ASCII
)
_REVISION_PART: Final = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}", re.ASCII)
_LONGEST_FILE_PART: Final = 255  # characters; what file systems take
_FORBIDDEN_IN_FILES: Final = frozenset('<>:"|?*\\')  # what Windows reads as something else
_DEVICE: Final = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE | re.ASCII)
_DRIVE: Final = re.compile(r"[A-Za-z]:[\\/]", re.ASCII)
_SCHEME: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathReference:
    """A file on disk, as it was typed."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaReference:
    """One tag of a model in a registry that speaks Ollama's protocol."""

    host: str = OLLAMA_HOST
    namespace: str = OLLAMA_NAMESPACE
    model: str
    tag: str = LATEST
    scheme: str = "https"

    @property
    def manifest_parts(self) -> tuple[str, str, str, str]:
        """The folders, and the file, of the manifest below `manifests`."""
        return (self.host, self.namespace, self.model, self.tag)

    def __str__(self) -> str:
        """Return the name as ollama shows it, with a host only where it is not ollama's own."""
        name = f"{self.model}:{self.tag}"
        if self.host == OLLAMA_HOST:
            if self.namespace == OLLAMA_NAMESPACE:
                return name
            return f"ollama.com/{self.namespace}/{name}"
        scheme = "" if self.scheme == "https" else f"{self.scheme}://"
        return f"{scheme}{self.host}/{self.namespace}/{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceReference:
    """A repository, and which of its files: by the label of a quantization, or by name.

    `quantization` keeps the case that was typed; labels match in any. No `revision` is the
    repository's main branch.
    """

    repository_user: str
    repository_name: str
    quantization: str | None = None
    revision: str | None = None
    file: str | None = None

    @property
    def repository(self) -> str:
        """The repository's name at the host: user/name."""
        return f"{self.repository_user}/{self.repository_name}"

    @property
    def cache_folder(self) -> str:
        """The name of the repository's folder in a cache of huggingface_hub's layout."""
        return f"models--{self.repository_user}--{self.repository_name}"

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        choice = self.file or self.quantization
        return f"hf.co/{self.repository}{revision}{f':{choice}' if choice else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogReference:
    """An entry of the catalogue; no quantization means the one that the entry recommends."""

    entry: str
    quantization: str | None = None

    def __str__(self) -> str:
        return f"{self.entry}:{self.quantization}" if self.quantization else self.entry


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortName:
    """A bare word: a model at hand, or one of the library at ollama.com."""

    model: str
    tag: str | None = None

    @property
    def in_ollama_library(self) -> OllamaReference:
        """The model that ollama would mean by this name."""
        return OllamaReference(model=self.model, tag=self.tag or LATEST)

    def __str__(self) -> str:
        return f"{self.model}:{self.tag}" if self.tag else self.model


ModelReference = (
    PathReference | OllamaReference | HuggingFaceReference | CatalogReference | ShortName
)


def parse_reference(text: str, *, catalog_names: Collection[str] | None = None) -> ModelReference:
    """Return what a name means; ModelNotFound when it is empty, UsageError when it is none.

    `catalog_names` are the entries that a bare word is compared with, in any case (None: those of
    the package).
    """
    text = text.strip()
    if not text:
        raise ModelNotFound("The name of the model is empty.", hint=_LISTING)
    if is_path(text):
        if "\0" in text:
            raise _refused(text, "holds a zero byte")
        return PathReference(path=text)
    if len(text) > _LONGEST_NAME:
        raise _refused(text, f"has {len(text)} characters, and {_LONGEST_NAME} are the most")
    if (match := _SCHEME.fullmatch(text)) is not None:
        return _with_scheme(text, match["scheme"].lower(), match["rest"].split("?", 1)[0])
    parts = text.split("/")
    if len(parts) == 1:
        return _bare(text, _package_entries() if catalog_names is None else catalog_names)
    first = parts[0].lower()
    if first in _HUGGING_FACE_HOSTS:
        return _hugging_face(text, "/".join(parts[1:]))
    if first in _OLLAMA_HOSTS or _looks_like_host(first) or _is_third_party(parts):
        return _ollama(text, "/".join(parts))
    return _hugging_face(text, text)


def is_path(text: str) -> bool:
    """Whether a name can only be the path of a file: it is anchored, or ends like one.

    `user/repo:file.gguf` and what begins with a scheme or a known host are none.
    """
    if text.startswith(("/", "./", "../", "~", ".\\", "..\\", "\\")) or text in (".", ".."):
        return True
    if _DRIVE.match(text) is not None:
        return True
    if _SCHEME.fullmatch(text) is not None or ":" in text:
        return False
    if text.split("/", 1)[0].lower() in _HUGGING_FACE_HOSTS | _OLLAMA_HOSTS:
        return False
    return "\\" in text or text.lower().endswith(GGUF_ENDING)


def repository_file_parts(path: str) -> tuple[str, ...]:
    """Return the folders and the file of a path in a repository; UsageError when it may not be one.

    What a host lists is as little to be trusted as what is typed: nothing absolute, no `..`, no
    drive, no hidden file, no name of a device.
    """
    parts = tuple(path.split("/"))
    for part in parts:
        if not _is_file_name(part) or len(path) > _LONGEST_NAME:
            raise UsageError(
                f"'{_short(path)}' is not a file of a repository: '{_short(part)}' cannot be a "
                "part of its path."
            )
    return parts


def _with_scheme(text: str, scheme: str, rest: str) -> ModelReference:
    if scheme in _HUGGING_FACE_SCHEMES:
        return _hugging_face(text, rest)
    if scheme == "ollama":
        host = rest.split("/", 1)[0]
        if host.lower() in _OLLAMA_HOSTS or _looks_like_host(host) or rest.count("/") > 1:
            return _ollama(text, rest)
        return _ollama(text, f"{OLLAMA_HOST}/{rest}")
    if scheme == "file":
        if not rest.startswith("/") or "\0" in rest:
            raise _refused(text, "is no path of a file on this machine")
        return PathReference(path=rest)
    if scheme not in _WEB_SCHEMES:
        said = f"begins with '{_short(scheme)}://', and hf://, ollama:// and file:// are known"
        raise _refused(text, said)
    host, _, path = rest.partition("/")
    if host.lower() in _HUGGING_FACE_HOSTS:
        return _hugging_face(text, path.rstrip("/"))
    reference = _ollama(text, rest.rstrip("/"))
    if scheme == "http" and reference.host != OLLAMA_HOST:
        return OllamaReference(
            host=reference.host,
            namespace=reference.namespace,
            model=reference.model,
            tag=reference.tag,
            scheme="http",
        )
    return reference


def _bare(text: str, catalog_names: Collection[str]) -> CatalogReference | ShortName:
    model, tag = _split_tag(text)
    _check(text, "model", model, _MODEL)
    if tag is not None:
        _check(text, "tag", tag, _MODEL)
    if (entry := model.lower()) in catalog_names:
        return CatalogReference(entry=entry, quantization=tag)
    return ShortName(model=model, tag=tag)


def _ollama(text: str, rest: str) -> OllamaReference:
    """Read host/[namespace/]model[:tag]."""
    host, _, path = rest.partition("/")
    path, tag = _split_tag(path)
    parts = path.split("/")
    if len(parts) > 2:
        raise _refused(text, "has more parts than a host, a namespace, a model and a tag")
    namespace = parts[0] if len(parts) > 1 else OLLAMA_NAMESPACE
    _check(text, "host", host, _HOST)
    _check(text, "namespace", namespace, _NAMESPACE)
    _check(text, "model", parts[-1], _MODEL)
    if tag is not None:
        _check(text, "tag", tag, _MODEL)
    host = host.lower()
    return OllamaReference(
        host=OLLAMA_HOST if host in _OLLAMA_HOSTS else host,
        namespace=namespace,
        model=parts[-1],
        tag=tag or LATEST,
    )


def _hugging_face(text: str, rest: str) -> HuggingFaceReference:
    """Read user/repo[/folder/file.gguf | /resolve/revision/file][@revision][:QUANT | :file]."""
    rest, choice = _split_tag(rest) if ":" in rest else (rest, None)
    if choice is None and ":" in rest:  # user/repo:folder/file.gguf
        rest, choice = rest.split(":", 1)
    parts = rest.split("/")
    if len(parts) < 2:
        raise _refused(text, "names no repository (user/repo)")
    user, (name, _, revision), below = parts[0], parts[1].partition("@"), parts[2:]
    marks_revision = "@" in parts[1]
    if below and below[0] in ("resolve", "blob", "tree") and len(below) > 1:
        revision, marks_revision, below = below[1], True, below[2:]
    elif marks_revision and below and not below[-1].lower().endswith(GGUF_ENDING):
        revision, below = "/".join((revision, *below)), []  # refs/pr/7
    _check(text, "user", user, _REPOSITORY_PART)
    _check(text, "repository", name, _REPOSITORY_PART)
    if name.endswith(".git"):
        raise _refused(text, "ends with .git, and repositories are named without it")
    if marks_revision:
        for part in revision.split("/"):
            _check(text, "revision", part, _REVISION_PART)
    file = "/".join(below) or None
    if choice is not None and file is not None:
        raise _refused(text, "names both a file and a quantization")
    if choice is not None and choice.lower().endswith(GGUF_ENDING):
        file, choice = choice, None
    if file is not None:
        if not file.lower().endswith(GGUF_ENDING):
            raise _refused(text, f"has '{_short(file)}' behind the repository, which is no .gguf")
        repository_file_parts(file)
    if choice is not None:
        _check(text, "quantization", choice, _MODEL)
    return HuggingFaceReference(
        repository_user=user,
        repository_name=name,
        quantization=choice,
        revision=revision or None,
        file=file,
    )


def _split_tag(text: str) -> tuple[str, str | None]:
    """Split at the last colon, which begins a tag only behind the last slash."""
    head, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        return text, None
    return head, tag


def _looks_like_host(part: str) -> bool:
    """Whether the first part of a name is a host: Hugging Face's users have no such names."""
    return part.lower() == "localhost" or re.fullmatch(r"[^:]+:\d{1,5}", part) is not None


def _is_third_party(parts: list[str]) -> bool:
    """Whether these are host, namespace and model of some registry: a host has a dot."""
    return len(parts) == 3 and "." in parts[0] and "@" not in parts[1]


def _is_file_name(part: str) -> bool:
    return (
        0 < len(part) <= _LONGEST_FILE_PART
        and part.isprintable()
        and not part.startswith(".")
        and not part.endswith((".", " "))
        and not _FORBIDDEN_IN_FILES & set(part)
        and _DEVICE.fullmatch(part) is None
    )


def _check(text: str, what: str, part: str, rule: re.Pattern[str]) -> None:
    if not part:
        raise _refused(text, f"has an empty {what}")
    if rule.fullmatch(part) is None or part.endswith("."):
        raise _refused(text, f"has the {what} '{_short(part)}', which cannot be one")
    if _DEVICE.fullmatch(part) is not None:
        raise _refused(text, f"has the {what} '{_short(part)}', which Windows keeps for a device")


def _refused(text: str, why: str) -> UsageError:
    return UsageError(f"'{_short(text)}' is not the name of a model: it {why}.", hint=_FORMS)


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."


def _package_entries() -> Collection[str]:
    from moerun.model.catalog import catalog_names  # a folder to list, only when it is asked for

    return catalog_names()
