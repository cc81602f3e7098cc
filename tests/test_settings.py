import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moerun.errors import ConfigError
from moerun.planning.strategy import (
    AllocationPolicy,
    ExpertResidency,
    Limit,
    LoadMode,
    Pin,
    StreamingMode,
    Tier,
    Toggle,
)
from moerun.settings.description import LoadedSettings, Settings
from moerun.settings.keys import KEYS, find_key, write_bytes
from moerun.settings.load import load_settings
from moerun.settings.nodes import node_of, read_yaml
from moerun.units import parse_bytes

GIB = 1 << 30


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    user, project = tmp_path / "user", tmp_path / "project"
    user.mkdir()
    project.mkdir()
    return user, project


def load(
    folders: tuple[Path, Path],
    *,
    user: str | None = None,
    project: str | None = None,
    flags: dict[str, object] | None = None,
    **variables: str,
) -> LoadedSettings:
    if user is not None:
        (folders[0] / "config.yaml").write_text(user)
    if project is not None:
        (folders[1] / "moerun.yaml").write_text(project)
    return load_settings(flags, environment=variables, folder=folders[1], user_folder=folders[0])


def test_without_files_everything_is_default(folders):
    loaded = load(folders)
    assert loaded.settings == Settings()
    assert {origin for _, origin in loaded.origins} == {"default"}
    assert len(loaded.origins) == len(KEYS)


def test_later_layers_win_key_by_key_and_origins_say_which(folders):
    loaded = load(
        folders,
        user="memory_strategy:\n  vram_limit: 1G\n  ram_limit: 2G\ncontext: 1000\nbatch: 64\n"
        "ubatch: 64\n",
        project="context: 2000\nmemory_strategy:\n  ram_limit: 3G\nbatch: 128\n",
        flags={"batch": 512, "ubatch": None, "pins": ()},
        MOERUN_RAM_LIMIT="4G",
        MOERUN_BATCH="256",
    )
    strategy = loaded.settings.strategy
    assert strategy.vram_limit == (Limit(limit_bytes=GIB),)
    assert strategy.ram_limit == Limit(limit_bytes=4 * GIB)
    assert strategy.context_tokens == 2000
    assert (strategy.batch_tokens, strategy.ubatch_tokens) == (512, 64)
    user_file = folders[0] / "config.yaml"
    assert loaded.origin("memory_strategy.vram_limit") == f"{user_file}:2"
    assert loaded.origin("memory_strategy.ram_limit") == "MOERUN_RAM_LIMIT"
    assert loaded.origin("context") == "./moerun.yaml:1"
    assert loaded.origin("batch") == "--batch"
    assert loaded.origin("ubatch") == f"{user_file}:6"
    assert loaded.origin("threads") == "default"


@pytest.mark.parametrize(
    ("name", "text", "fields"),
    [
        ("hierarchy", "[vram, ssd]", {"hierarchy": (Tier.VRAM, Tier.SSD)}),
        ("hierarchy", "vram,ram", {"hierarchy": (Tier.VRAM, Tier.RAM)}),
        (
            "allocation_policy",
            "Conservative",
            {"allocation_policy": AllocationPolicy.CONSERVATIVE},
        ),
        ("vram_limit", "auto", {"vram_limit": None}),
        (
            "vram_limit",
            "8G,24G",
            {"vram_limit": (Limit(limit_bytes=8 * GIB), Limit(limit_bytes=24 * GIB))},
        ),
        (
            "vram_limit",
            "[50%, 10GB]",
            {"vram_limit": (Limit(of_total_fraction=0.5), Limit(limit_bytes=10**10))},
        ),
        ("vram_limit", "0", {"vram_limit": (Limit(limit_bytes=0),)}),
        ("ram_limit", "80%", {"ram_limit": Limit(of_total_fraction=0.8)}),
        ("expert_residency", "60%", {"expert_residency": ExpertResidency(vram_fraction=0.6)}),
        (
            "expert_residency",
            "{vram: 60%, ram: 40%}",
            {"expert_residency": ExpertResidency(vram_fraction=0.6, ram_fraction=0.4)},
        ),
        (
            "expert_residency",
            "{ram: 25%}",
            {"expert_residency": ExpertResidency(ram_fraction=0.25)},
        ),
        ("max_swap_size", "4G", {"max_swap_size": Limit(limit_bytes=4 * GIB)}),
        ("preload_experts", "0", {"preload_experts": 0}),
        ("preload_experts", "auto", {"preload_experts": None}),
        ("streaming", "off", {"streaming": StreamingMode.OFF}),
        ("cpu_expert_layers", "12", {"cpu_expert_layers": 12}),
        ("context", "32k", {"context_tokens": 32768}),
        ("context", "max", {"context_is_largest": True}),
        ("context", "131_072", {"context_tokens": 131072}),
        ("kv_type_k", "q8_0", {"kv_encoding_k": "Q8_0"}),
        ("flash_attention", "on", {"flash_attention": Toggle.ON}),
        ("extra_buffers", "off", {"extra_buffers": Toggle.OFF}),
        ("load_mode", "direct", {"load_mode": LoadMode.DIRECT}),
        ("split_layers", "no", {"split_layers": False}),
        ("threads", "6", {"threads": 6}),
        ("gpu_margin", "1536M", {"gpu_margin_bytes": 1536 << 20}),
        ("host_margin", "0", {"host_margin_bytes": 0}),
    ],
)
def test_values_read_the_same_from_a_file_a_variable_and_a_flag(
    folders, name: str, text: str, fields: dict[str, Any]
):
    key = find_key(name)
    assert key is not None
    *sections, last = key.name.split(".")
    lines = [f"{'  ' * depth}{section}:" for depth, section in enumerate(sections)]
    is_bare_list = "," in text and not text.startswith(("[", "{"))
    text_in_file = f"[{text}]" if is_bare_list else text
    lines.append(f"{'  ' * len(sections)}{last}: {text_in_file}")
    variables = {key.variable: text}
    by_variable = load(folders, **variables).settings.strategy  # type: ignore[arg-type]
    by_flag = load(folders, flags={name: text}).settings.strategy
    by_file = load(folders, user="\n".join(lines)).settings.strategy
    assert {field: getattr(by_file, field) for field in fields} == fields
    assert by_file == by_variable == by_flag


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_what_is_shown_reads_back_as_the_same(key):
    texts = {
        "memory_strategy.hierarchy": "[ram, ssd]",
        "memory_strategy.vram_limit": "[1000000b, 33.3%]",
        "memory_strategy.expert_residency": "{vram: 12.5%, ram: 1%}",
        "memory_strategy.pins.patterns": "{'blk.*_exps.*': gpu1}",
        "workers": "[a:1, '[::1]:2']",
    }
    text = texts.get(key.name)
    start = Settings() if text is None else key.apply(Settings(), key.parse(read_node(text)))
    again = key.apply(Settings(), key.parse(node_of(key.show(start), "here")))
    assert key.show(again) == key.show(start)
    assert without_pin_origins(again) == without_pin_origins(start)


def read_node(text: str):
    node = read_yaml(text, "here")
    assert node is not None
    return node


def without_pin_origins(settings: Settings) -> tuple[object, ...]:
    pins = tuple((pin.pattern, pin.device) for pin in settings.strategy.pins)
    fields = settings.strategy.__dataclass_fields__
    rest = (getattr(settings.strategy, name) for name in fields if name != "pins")
    return (pins, *rest, settings.workers)


@pytest.mark.parametrize("size_bytes", [0, 1, 1000, 1 << 20, 3 << 29, 8 << 30, 5 << 40, 10**10])
def test_written_sizes_read_back_exactly(size_bytes: int):
    assert parse_bytes(write_bytes(size_bytes)) == size_bytes


def test_pins_carry_the_line_that_set_them(folders):
    loaded = load(
        folders,
        project="memory_strategy:\n  pins:\n    patterns:\n      blk.0.*: cpu\n"
        "      '*.ffn_up_exps.*': gpu1\n    cpu_expert_layers: 3\n",
    )
    assert loaded.settings.strategy.pins == (
        Pin(pattern="blk.0.*", device="cpu", origin="./moerun.yaml:4"),
        Pin(pattern="*.ffn_up_exps.*", device="gpu1", origin="./moerun.yaml:5"),
    )
    assert loaded.settings.strategy.cpu_expert_layers == 3
    by_flag = load(folders, flags={"pins": ("blk.1.*=ssd", "a=b.*=gpu:0000:01:00.0")})
    assert [(pin.pattern, pin.device) for pin in by_flag.settings.strategy.pins] == [
        ("blk.1.*", "ssd"),
        ("a=b.*", "gpu:0000:01:00.0"),
    ]
    by_variable = load(folders, MOERUN_PINS='{"blk.2.*": cpu}')
    assert by_variable.settings.strategy.pins[0].origin == "MOERUN_PINS"


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("context: 8192\nbatsh: 3\n", 2, "'batsh' is not a setting"),
        ("memory_strategy:\n  vram_limt: 8G\n", 2, "'vram_limt' is not a setting of memory_"),
        ("vram_limit: 8G\n", 1, "'vram_limit' is not a setting"),
        (
            "memory_strategy:\n  pins:\n    blk.0.*: cpu\n",
            3,
            "not a setting of memory_strategy.pins",
        ),
        ("memory_strategy: 8G\n", 1, "'memory_strategy' must hold keys"),
        ("- context\n", 1, "the file must hold keys"),
        ("just words\n", 1, "the file must hold keys"),
        ("\ncontext: many\n", 2, "context: 'many' is not a whole number"),
        ("context: 100\n", 1, "context: 100 is not between 256 and"),
        ("context: 99999999999999999999\n", 1, "not a whole number"),
        ("context:\n", 1, "context: there is no value"),
        ("context: [1, 2]\n", 1, "context: a single value is wanted"),
        ("memory_strategy:\n  vram_limit: 8Q\n", 2, "neither auto, nor a size such as 8G"),
        ("memory_strategy:\n  vram_limit: 8\n", 2, "'8' means 8 bytes; write 8G"),
        ("memory_strategy:\n  vram_limit: []\n", 2, "the list is empty"),
        ("memory_strategy:\n  vram_limit:\n  - 8G\n  - 120%\n", 4, "between 0% and 100%"),
        ("memory_strategy:\n  ram_limit: -5G\n", 2, "'-5G' is neither auto"),
        ("memory_strategy:\n  hierarchy: [ram, vram]\n", 2, "keep the order vram, ram, ssd"),
        ("memory_strategy:\n  hierarchy: [vram, vram]\n", 2, "each at most once"),
        ("memory_strategy:\n  hierarchy: [vram, tape]\n", 2, "'tape' is none of vram, ram, ssd"),
        ("memory_strategy:\n  hierarchy: []\n", 2, "at least one"),
        ("memory_strategy:\n  allocation_policy: bold\n", 2, "none of adaptive, conservative"),
        ("memory_strategy:\n  expert_residency: 0.5\n", 2, "'0.5' is not a percentage"),
        ("memory_strategy:\n  expert_residency: {vram: 70%, ram: 40%}\n", 2, "add up to 110%"),
        ("memory_strategy:\n  expert_residency: {ssd: 70%}\n", 2, "neither vram nor ram"),
        ("memory_strategy:\n  expert_residency: {}\n", 2, "the map is empty"),
        ("memory_strategy:\n  preload_experts: some\n", 2, "'some' is not a whole number"),
        ("memory_strategy:\n  pins:\n    patterns:\n      a.*: gpu\n", 4, "'gpu' is no device"),
        ("memory_strategy:\n  pins:\n    patterns:\n      '': cpu\n", 4, "a pin needs a pattern"),
        ("memory_strategy:\n  pins:\n    patterns: [a.*]\n", 3, "'a.*' is not PATTERN=DEVICE"),
        ("kv_type_k: q9\n", 1, "'q9' is none of f32"),
        ("kv_type_k: |\n  f16\n  f16\n", 1, "a value stands on one line"),
        (f"threads: {'1' * 5000}\n", 1, "at most 4,096 characters"),
        ("split_layers: perhaps\n", 1, "neither true nor false"),
        ("workers: [somewhere]\n", 1, "'somewhere' is not an address"),
        ("workers: [a:0]\n", 1, "'a:0' is not an address"),
        ("workers: [a:1, a:1]\n", 1, "'a:1' stands twice"),
        ("context: 300\ncontext: 400\n", 2, "'context' was already set at"),
        ("context: 300\n---\nbatch: 1\n", 2, "a second document"),
        ("a: &x 1\nb: *x\n", 1, "anchors are not supported"),
        (
            "memory_strategy:\n  pins:\n    patterns:\n      *.ffn: cpu\n",
            4,
            "put quotes around a text",
        ),
        ("a: *x\n", 1, "aliases are not supported"),
        ("context: !!python/object:os.system 1\n", 1, "tags are not supported"),
        ("memory_strategy:\n\tvram_limit: 8G\n", 2, "a tab stands where YAML wants spaces"),
        ("context: [1, 2\nbatch: 3\n", 2, "it is not YAML"),
        ("a: " + "[" * 50 + "]" * 50, 1, "nested more than 16"),
        ("? [a]\n: 1\n", 1, "a key must be a text"),
        ("context: 1\x01\n", None, "characters that YAML does not allow"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(folders, text: str, line: int | None, why: str):
    with pytest.raises(ConfigError) as caught:
        load(folders, user=text)
    error = caught.value
    where = str(folders[0] / "config.yaml") + (f":{line}" if line is not None else "")
    assert error.origin == where
    assert error.message.startswith(where)
    assert why in error.message
    assert "\n" not in error.message
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("batsh: 3\n", "did you mean 'batch'?"),
        ("memory_stategy:\n  vram_limit: 8G\n", "did you mean 'memory_strategy'?"),
        ("memory_strategy:\n  vram_limt: 8G\n", "did you mean 'vram_limit'?"),
        ("vram_limit: 8G\n", "it belongs at memory_strategy.vram_limit"),
        ("memory_strategy:\n  pins:\n    blk.0.*: cpu\n", "below memory_strategy.pins.patterns"),
        ("memory_strategy:\n  zzz: 8G\n", "the keys here are hierarchy"),
    ],
)
def test_an_unknown_key_gets_the_one_that_was_meant(folders, text: str, hint: str):
    with pytest.raises(ConfigError) as caught:
        load(folders, user=text)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("flags", "variables", "origin"),
    [
        ({"vram_limit": "8Q"}, {}, "--vram"),
        ({"threads": 0}, {}, "--threads"),
        ({"pins": ("blk.0",)}, {}, "--pin"),
        ({}, {"MOERUN_RAM_LIMIT": "[8G"}, "MOERUN_RAM_LIMIT"),
        ({}, {"MOERUN_CONTEXT": "{}"}, "MOERUN_CONTEXT"),
    ],
)
def test_flags_and_variables_are_named_as_the_user_typed_them(
    folders, flags: dict[str, object], variables: dict[str, str], origin: str
):
    with pytest.raises(ConfigError) as caught:
        load(folders, flags=flags, **variables)
    assert caught.value.origin == origin
    assert caught.value.message.startswith(origin)


def test_a_project_may_not_set_workers_or_paths_outside_its_folder(folders):
    with pytest.raises(ConfigError, match="project's file may not set workers") as caught:
        load(folders, project="workers: [10.0.0.1:50052]\n")
    assert caught.value.origin == "./moerun.yaml:1"
    for path in ("/tmp", "../other", "a/../../other", "~/cache"):
        with pytest.raises(ConfigError, match="outside the folder"):
            load(folders, project=f"memory_strategy:\n  ssd_cache_path: {path}\n")
    (folders[1] / "link").symlink_to(folders[0])
    with pytest.raises(ConfigError, match="outside the folder"):
        load(folders, project="memory_strategy:\n  ssd_cache_path: link/cache\n")
    loaded = load(folders, project="memory_strategy:\n  ssd_cache_path: cache\n")
    assert loaded.settings.strategy.ssd_cache_path == str(folders[1] / "cache")


def test_the_user_may_set_workers_and_any_path(folders):
    loaded = load(
        folders,
        user="workers: [10.0.0.1:50052]\nmemory_strategy:\n  ssd_cache_path: /fast\n",
    )
    assert loaded.settings.workers == ("10.0.0.1:50052",)
    assert loaded.settings.strategy.ssd_cache_path == "/fast"
    assert load(folders, MOERUN_WORKERS="a:1,[::1]:2").settings.workers == ("a:1", "[::1]:2")


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        ("batch: 100\nubatch: 200\n", "ubatch", "200 tokens is larger than the batch of 100"),
        ("ubatch: 4096\n", "ubatch", "4,096 tokens is larger than the batch of 2,048"),
        ("kv_type_v: q8_0\nflash_attention: off\n", "kv_type_v", "needs flash attention"),
        (
            "memory_strategy:\n  hierarchy: [ram]\n  expert_residency: 60%\n",
            "memory_strategy.expert_residency",
            "60% of the experts are wanted in VRAM",
        ),
    ],
)
def test_keys_that_contradict_one_another_are_refused(folders, text: str, key: str, why: str):
    with pytest.raises(ConfigError, match=why) as caught:
        load(folders, user=text)
    assert caught.value.key == key


def test_a_small_batch_alone_takes_the_micro_batch_with_it(folders):
    loaded = load(folders, flags={"batch": 100})
    assert loaded.settings.strategy.ubatch_tokens == 100
    assert loaded.origin("ubatch") == "--batch"
    assert load(folders, flags={"batch": 600}).settings.strategy.ubatch_tokens == 512


def test_files_that_are_none_are_one_sentence(folders):
    file = folders[0] / "config.yaml"
    file.mkdir()
    with pytest.raises(ConfigError, match="folder or a device"):
        load(folders)
    file.rmdir()
    file.write_bytes("context: 300 # gr\xfc\xdf".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"byte 17 is not UTF-8"):
        load(folders)
    file.write_bytes(b"# " + b"x" * 300_000)
    with pytest.raises(ConfigError, match="more than"):
        load(folders)
    os.mkfifo(folders[1] / "moerun.yaml")
    file.write_text("")
    with pytest.raises(ConfigError, match="device"):
        load(folders)


def test_empty_files_and_headings_over_comments_set_nothing(folders):
    for text in (
        "",
        "# nothing\n",
        "\ufeff",
        "---\n",
        "memory_strategy:\n  # later\ncontext: 300\n",
    ):
        loaded = load(folders, user=text)
        assert loaded.settings.strategy.vram_limit is None
    assert loaded.settings.strategy.context_tokens == 300


def test_a_named_file_takes_the_place_of_both(folders, tmp_path: Path):
    (folders[0] / "config.yaml").write_text("context: 300\n")
    (folders[1] / "moerun.yaml").write_text("batch: 600\n")
    named = tmp_path / "named.yaml"
    named.write_text("workers: [a:1]\nmemory_strategy:\n  ssd_cache_path: cache\n")
    loaded = load_settings(
        {"threads": "3"}, file=named, environment={}, folder=folders[1], user_folder=folders[0]
    )
    assert loaded.settings.workers == ("a:1",)
    assert loaded.settings.strategy.ssd_cache_path == str(tmp_path / "cache")
    assert loaded.origin("workers") == f"{named}:1"
    assert (loaded.origin("context"), loaded.origin("batch")) == ("default", "default")
    with pytest.raises(ConfigError, match="no such file"):
        load_settings(file=tmp_path / "absent.yaml", environment={}, folder=folders[1])


def test_variables_that_look_like_settings_are_noted(folders):
    loaded = load(folders, MOERUN_VRAM_LIMT="8G", MOERUN_DEBUG="1", MOERUN_STATE_DIR="/x", PATH="")
    assert loaded.notes == ("MOERUN_VRAM_LIMT is not a setting; did you mean MOERUN_VRAM_LIMIT?",)


def test_an_empty_variable_is_not_set(folders):
    assert load(folders, MOERUN_VRAM_LIMIT=" ").origin("memory_strategy.vram_limit") == "default"


def test_variables_and_flags_of_all_keys_differ():
    for names in ([key.variable for key in KEYS], [key.flag for key in KEYS]):
        assert len(set(names)) == len(names)
    assert len({name for key in KEYS for name in {key.name, key.short}}) >= len(KEYS)


def test_yaml_is_loaded_only_when_there_is_some(tmp_path: Path):
    script = (
        "import sys; from pathlib import Path; from moerun.settings.load import load_settings;"
        f"load_settings(environment={{}}, folder=Path({str(tmp_path)!r}),"
        f" user_folder=Path({str(tmp_path)!r})); print('yaml' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "False"
