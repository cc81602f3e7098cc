"""What names mean, and that no name leads out of a store.

Knows: the forms that people write, and what has been used to break out of folders.
Does not know: which models exist.
"""

import random
import string
from pathlib import Path

import pytest

from moerun.errors import ModelNotFound, UsageError
from moerun.store.names import path_within
from moerun.store.references import (
    CatalogReference,
    HuggingFaceReference,
    ModelReference,
    OllamaReference,
    PathReference,
    ShortName,
    parse_reference,
    repository_file_parts,
)

ENTRIES = frozenset({"qwen3-30b-a3b", "gpt-oss-20b"})
HOSTILE_NAMES = 10_000
SEED = 20261121


def parse(text: str) -> ModelReference:
    return parse_reference(text, catalog_names=ENTRIES)


def hub(
    user: str,
    name: str,
    quantization: str | None = None,
    *,
    revision: str | None = None,
    file: str | None = None,
) -> HuggingFaceReference:
    return HuggingFaceReference(
        repository_user=user,
        repository_name=name,
        quantization=quantization,
        revision=revision,
        file=file,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qwen3-30b-a3b", CatalogReference(entry="qwen3-30b-a3b")),
        (
            "Qwen3-30B-A3B:Q4_K_M",
            CatalogReference(entry="qwen3-30b-a3b", quantization="Q4_K_M"),
        ),
        ("qwen3", ShortName(model="qwen3")),
        (" qwen3:30b ", ShortName(model="qwen3", tag="30b")),
        ("ollama://qwen3", OllamaReference(model="qwen3")),
        ("ollama://me/mine:x", OllamaReference(namespace="me", model="mine", tag="x")),
        ("ollama.com/me/mine", OllamaReference(namespace="me", model="mine")),
        ("https://ollama.com/library/qwen3:30b", OllamaReference(model="qwen3", tag="30b")),
        ("localhost:5000/m", OllamaReference(host="localhost:5000", model="m")),
        (
            "Registry.io/a/b:c",
            OllamaReference(host="registry.io", namespace="a", model="b", tag="c"),
        ),
        (
            "http://127.0.0.1:80/a/b",
            OllamaReference(host="127.0.0.1:80", namespace="a", model="b", scheme="http"),
        ),
        ("unsloth/Qwen3-GGUF:Q4_K_M", hub("unsloth", "Qwen3-GGUF", "Q4_K_M")),
        ("some.one/v1.5", hub("some.one", "v1.5")),
        ("hf.co/u/r:ud-q2_k_xl", hub("u", "r", "ud-q2_k_xl")),
        ("hf://u/r@refs/pr/7:Q8_0", hub("u", "r", "Q8_0", revision="refs/pr/7")),
        ("hf.co/u/r@v1.0/a/m.gguf", hub("u", "r", revision="v1.0", file="a/m.gguf")),
        ("u/r:m-00001-of-00002.gguf", hub("u", "r", file="m-00001-of-00002.gguf")),
        ("u/r:a/m.gguf", hub("u", "r", file="a/m.gguf")),
        ("https://huggingface.co/u/r/", hub("u", "r")),
        ("https://huggingface.co/u/r/tree/main", hub("u", "r", revision="main")),
        (
            "https://hf.co/u/r/resolve/main/Q4/m.gguf?download=true",
            hub("u", "r", revision="main", file="Q4/m.gguf"),
        ),
        ("m.gguf", PathReference(path="m.gguf")),
        ("models/M.GGUF", PathReference(path="models/M.GGUF")),
        ("../m", PathReference(path="../m")),
        ("~/m", PathReference(path="~/m")),
        ("C:\\models\\m.gguf", PathReference(path="C:\\models\\m.gguf")),
        ("file:///srv/m.gguf", PathReference(path="/srv/m.gguf")),
    ],
)
def test_a_name_means_one_thing(text: str, expected: ModelReference):
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["qwen3-30b-a3b:Q4_K_M", "qwen3:30b", "ollama.com/me/mine:x", "localhost:5000/a/b:c",
     "http://127.0.0.1:80/a/b:c", "hf.co/u/r@refs/pr/7:Q8_0", "hf.co/u/r:a/m.gguf", "../m"],
)  # fmt: skip
def test_what_a_reference_is_shown_as_means_the_same(text: str):
    assert str(parse(text)) == text


def test_what_ollama_would_mean_by_a_bare_word():
    bare = parse("qwen3")
    assert isinstance(bare, ShortName)
    assert bare.in_ollama_library.manifest_parts == (
        "registry.ollama.ai",
        "library",
        "qwen3",
        "latest",
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a:", "empty tag"),
        (":b", "empty model"),
        ("-rf", "the model '-rf'"),
        (".hidden", "the model '.hidden'"),
        ("qwen3..", "the model 'qwen3..'"),
        ("NUL", "Windows keeps for a device"),
        ("com1.txt:latest", "Windows keeps for a device"),
        ("a/../b", "the repository '..'"),
        ("u/r:..", "the quantization '..'"),
        ("u--x/r", "the user 'u--x'"),
        ("u/r.git", "ends with .git"),
        ("u/r@../x:Q8_0", "the revision '..'"),
        ("hf.co/u", "names no repository"),
        ("hf.co/u/r/x.txt", "no .gguf"),
        ("hf.co/u/r/m.gguf:Q8_0", "both a file and a quantization"),
        ("hf.co/u/r/../../m.gguf", "'..' cannot be a part"),
        ("hf.co/u/r//m.gguf", "'' cannot be a part"),
        ("u/r:a\\b.gguf", "'a\\b.gguf' cannot be a part"),
        ("ollama.com/a/b/c", "more parts"),
        ("ollama.com/a.b/c", "the namespace 'a.b'"),
        ("evil@host:1/a/b", "the host"),
        ("ftp://x/y", "begins with 'ftp://'"),
        ("file://host/m.gguf", "no path"),
        ("x" * 2000, "2000 characters"),
        ("qwen3 30b", "the model 'qwen3 30b'"),
        ("qwen\N{CYRILLIC SMALL LETTER IE}3", "the model"),
        ("./a\0b.gguf", "zero byte"),
    ],
)
def test_what_is_no_name_is_refused_in_one_sentence(text: str, says: str):
    with pytest.raises(UsageError) as error:
        parse(text)
    assert says in error.value.message
    assert len(error.value.message) < 300
    assert "\n" not in error.value.message


@pytest.mark.parametrize("text", ["", "  ", "\t"])
def test_an_empty_name_is_no_model(text: str):
    with pytest.raises(ModelNotFound, match="empty"):
        parse(text)


@pytest.mark.parametrize("path", ["m.gguf", "Q4/m-00001-of-00002.gguf", "a b/c+d.json"])
def test_files_that_a_repository_may_list(path: str):
    assert repository_file_parts(path) == tuple(path.split("/"))


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".git/config", "C:/x", "a\\..\\b",
     "a\0b", "a\nb", "x" * 300, "con.gguf", "a/x.", "a/\ud800", "a:stream", "~/x|y"],
)  # fmt: skip
def test_files_that_no_repository_may_list(path: str):
    with pytest.raises(UsageError, match="is not a file of a repository"):
        repository_file_parts(path)


def test_a_path_within_follows_links(tmp_path: Path):
    store = tmp_path / "store"
    (store / "real").mkdir(parents=True)
    (store / "out").symlink_to(tmp_path)
    assert path_within(store, "real", "m") == store / "real" / "m"
    for parts in (("out", "x"), ("..", "x"), ("real", "..", "..", "x"), ("/etc",), (), ("a\0b",)):
        with pytest.raises(UsageError):
            path_within(store, *parts)


_PIECES = (
    "..", ".", "/", "\\", ":", "@", "~", "//", "\0", "%2e%2e", "%2f", "..%2f", "....//", "..\\",
    "C:", "CON", "nul", "aux.gguf", "hf.co", "hf://", "huggingface.co", "ollama://",
    "ollama.com", "file:",
    "registry.ollama.ai", "http://", "https://", "localhost:1", "library", "model", "latest",
    "resolve", "refs/pr/1", "main", "user", "repo", ".gguf", "m.gguf", "Q4_K_M", "etc/passwd",
    "/etc/shadow", ".ssh", "blobs", "sha256-", "models--a--b", "--", "\u202e", "\ud800", "\xe9",

    "\n", "\r", "\t", " ", "$HOME", "`id`", ";", "|", "*", "?", "a" * 81, "a" * 300,
)  # fmt: skip


# Sound names of which one or two parts are replaced: these get past the first look.
_FORMS = (
    "{}:{}", "{}/{}:{}", "hf.co/{}/{}:{}", "hf://{}/{}@{}:Q8_0", "hf.co/{}/{}/{}/m.gguf",
    "https://hf.co/{}/{}/resolve/{}/m.gguf", "ollama.com/{}/{}:{}", "localhost:{}/{}/{}:x",
    "{}.io/{}/{}", "ollama://{}/{}", "http://{}/{}/{}:{}",
)  # fmt: skip


def hostile(random_source: random.Random) -> str:
    if random_source.random() < 0.5:
        form = random_source.choice(_FORMS)
        filled = ["good"] * form.count("{}")
        for _ in range(random_source.randint(0, 2)):
            filled[random_source.randrange(len(filled))] = random_source.choice(_PIECES)
        return form.format(*filled)
    alphabet = string.ascii_letters + string.digits + "./\\:@~-_%\0"
    pieces: list[str] = []
    for _ in range(random_source.randint(1, 7)):
        if random_source.random() < 0.75:
            pieces.append(random_source.choice(_PIECES))
        else:
            pieces.append("".join(random_source.choices(alphabet, k=random_source.randint(1, 6))))
        if random_source.random() < 0.4:
            pieces.append(random_source.choice("/:@"))
    return "".join(pieces)


def parts_in_store(reference: ModelReference) -> tuple[tuple[str, ...], ...]:
    """The paths below a store that a name becomes, for every kind that is stored."""
    match reference:
        case OllamaReference():
            return (("manifests", *reference.manifest_parts),)
        case ShortName():
            return (("manifests", *reference.in_ollama_library.manifest_parts),)
        case CatalogReference():
            return (("catalog", reference.entry, reference.quantization or "default"),)
        case HuggingFaceReference():
            folder, revision = reference.cache_folder, (reference.revision or "main").split("/")
            file = repository_file_parts(reference.file or "m.gguf")
            return ((folder, "refs", *revision), (folder, "snapshots", *revision, *file))
        case PathReference():
            return ()  # read where it lies, and never written


def test_no_hostile_name_leads_out_of_a_store(tmp_path: Path):
    store = tmp_path / "store"
    store.mkdir()
    random_source = random.Random(SEED)
    kinds: dict[str, int] = {}
    for number in range(HOSTILE_NAMES):
        name = hostile(random_source)
        try:
            reference = parse(name)
        except (UsageError, ModelNotFound):
            kinds["refused"] = kinds.get("refused", 0) + 1
            continue
        kinds[type(reference).__name__] = kinds.get(type(reference).__name__, 0) + 1
        for parts in parts_in_store(reference):
            # joined by the system's own rules, links and dots resolved
            derived = store.joinpath(*parts).resolve()
            said = f"name {number} of seed {SEED}: {name!r} -> {derived}"
            assert derived.is_relative_to(store), said
            assert len(derived.relative_to(store).parts) == len(parts), said
            for part in parts:
                assert not set(part) & set('/\\\0<>"|?*'), said
                assert part.strip(". ") == part, said
    assert list(tmp_path.iterdir()) == [store]
    assert not list(store.iterdir())
    assert min(kinds.get(kind, 0) for kind in ("refused", "PathReference", "ShortName")) > 100
    assert min(kinds.get(kind, 0) for kind in ("HuggingFaceReference", "OllamaReference")) > 100


def test_no_hostile_list_of_files_leads_out_of_a_store(tmp_path: Path):
    store = tmp_path / "store"
    store.mkdir()
    random_source = random.Random(SEED + 1)
    accepted = 0
    for number in range(HOSTILE_NAMES):
        path = hostile(random_source)
        said = f"path {number} of seed {SEED + 1}: {path!r}"
        try:
            parts = repository_file_parts(path)
        except UsageError:
            # what the grammar refuses and the last guard takes must still lie within
            try:
                derived = path_within(store, path)
            except UsageError:
                continue
            assert derived.resolve().is_relative_to(store), said
            continue
        accepted += 1
        assert path_within(store, *parts).resolve().is_relative_to(store), said
    assert accepted > 100
