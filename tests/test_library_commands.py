"""list, show, rm, cp, create and what a model carries, as they are typed."""

import json
import os
from pathlib import Path

import pytest

from moerun.cli.app import main
from moerun.cli.options import PlacementFlags
from moerun.cli.planning_steps import profile_of_name, read_settings
from moerun.engine.interface import GenerationRequest, Message, Sampling, Tool
from moerun.errors import ConfigError
from moerun.model.gguf_file import read_file
from moerun.model.gguf_header import read_model
from moerun.runner.carried import carried_by
from moerun.settings.description import ModelSettings
from moerun.settings.load import load_settings, with_model
from moerun.store.profile import ModelProfile
from tests.adapters import write_adapter
from tests.model_files import a_model_file

MODELFILE = """
FROM {path}
PARAMETER temperature 0.1
PARAMETER num_predict 8
PARAMETER stop "x y"
PARAMETER ram_limit 24G
PARAMETER num_ctx 512
SYSTEM Be brief.
MESSAGE user Hello
MESSAGE assistant Hi
LICENSE Take it.
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("MOERUN_", "HF_", "OLLAMA_")):
            monkeypatch.delenv(name)
    for name in ("CONFIG_DIR", "STATE_DIR", "MODELS"):
        monkeypatch.setenv(f"MOERUN_{name}", str(tmp_path / name.partition("_")[0].lower()))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MOERUN_REGISTRY", "http://127.0.0.1:9")  # where nobody answers
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def weights(tmp_path):
    """Return a model that lies where no name finds it."""
    return a_model_file(tmp_path, name="weights.gguf")


def run(capsys, *arguments, code=0):
    assert main(list(arguments)) == code, capsys.readouterr().err
    return capsys.readouterr()


def create(here, capsys, text, name="mine", code=0):
    (here / "Modelfile").write_text(text)
    return run(capsys, "create", name, code=code)


def test_a_model_is_made_shown_copied_and_removed(here, capsys, weights):
    assert create(here, capsys, MODELFILE.format(path=weights)).out == "created 'mine:latest'\n"
    lines = run(capsys, "list", "MI").out.splitlines()
    assert lines[0].split() == ["NAME", "ID", "SIZE", "MODIFIED", "SOURCE"]
    assert lines[1].split()[0] == "mine:latest"
    assert lines[1].split()[-1] == "moerun"
    shown = run(capsys, "show", "mine").out
    assert shown.startswith("  Model\n    architecture        qwen3moe\n")
    for text in ("2 of 4 used for a token", "Be brief.", "Take it.", '"x y"', "ram_limit"):
        assert text in shown
    assert run(capsys, "cp", "mine", "other:small").out == "copied 'mine' to 'other:small'\n"
    assert run(capsys, "rm", "mine").out.startswith("deleted 'mine:latest'")
    assert "mine" not in run(capsys, "ls").out
    assert "other:small" in run(capsys, "ls").out
    assert weights.exists()


def test_lists_and_pages_are_documents_too(here, capsys, weights):
    create(here, capsys, MODELFILE.format(path=weights))
    listed = json.loads(run(capsys, "list", "--json").out)
    assert listed["schema"] == 1
    mine = next(model for model in listed["models"] if model["name"] == "mine:latest")
    assert (mine["architecture"], mine["expert_count"], mine["source"]) == ("qwen3moe", 4, "moerun")
    shown = json.loads(run(capsys, "show", "mine", "--json").out)
    assert shown["digest"] == mine["digest"]
    assert shown["parameters"]["stop"] == ["x y"]
    assert shown["experts"]["experts_used"] == 2
    assert "tensors" not in shown
    verbose = json.loads(run(capsys, "show", "mine", "--json", "--verbose").out)
    assert {tensor["name"] for tensor in verbose["tensors"]} > {"output.weight"}


def test_one_part_is_printed_alone(here, capsys, weights):
    create(here, capsys, MODELFILE.format(path=weights))
    assert run(capsys, "show", "mine", "--system").out == "Be brief.\n"
    assert run(capsys, "show", "mine", "--license").out == "Take it.\n"
    assert 'stop           "x y"' in run(capsys, "show", "mine", "--parameters").out
    said = run(capsys, "show", "mine", "--system", "--license", code=2)
    assert "only one of" in said.err
    text = run(capsys, "show", "mine", "--modelfile").out
    create(here, capsys, text, name="again")
    mine, again = (json.loads(run(capsys, "show", n, "--json").out) for n in ("mine", "again"))
    for part in ("parameters", "system", "licenses"):
        assert mine[part] == again[part]


def test_the_catalogue_and_files_are_shown(capsys, weights):
    assert "8 of 128 used" in run(capsys, "show", "qwen3-30b-a3b").out
    assert "qwen3moe" in run(capsys, "show", str(weights)).out
    assert "did you mean qwen3-30b-a3b" in run(capsys, "show", "qwen3-30b-a3", code=3).err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM nosuch", "No model at hand is called 'nosuch'"),
        ("FROM demo\nADAPTER x", "ADAPTER x: there is no such file"),
        ("FROM demo\nADAPTER .", "an adapter is a GGUF file"),
        ("FROM demo\nADAPTER Modelfile", "download"),
        ("FROM demo\nTEMPLATE {% x %}{{ .Prompt }}", "TEMPLATE: it is written in Jinja"),
        ("FROM demo\nPARAMETER ram_limit lots", "memory_strategy.ram_limit: "),
        ("FROM demo\nPARAMETER streaming fast", "memory_strategy.streaming: "),
        ("FROM ./", "is a folder"),
        ("FROM " + "a" * 5000, "cannot be a path"),
        ("FROM demo\nADAPTER " + "a" * 5000, "there is no such file"),
    ],
)
def test_a_modelfile_that_cannot_be_meant_makes_nothing(here, capsys, text, message):
    (here / "Modelfile").write_text(text)
    assert main(["create", "mine"]) in (2, 3)
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert "mine" not in run(capsys, "list").out


def test_a_missing_modelfile_is_one_sentence(capsys):
    assert "there is no file Modelfile" in run(capsys, "create", "mine", code=2).err


def test_what_a_model_asks_for_is_a_layer_of_the_settings(here, capsys, weights, monkeypatch):
    create(here, capsys, MODELFILE.format(path=weights))
    (here / "moerun.yaml").write_text("memory_strategy:\n  ram_limit: 1G\n")
    flags = PlacementFlags()
    loaded = read_settings(flags, profile_of_name("mine"))
    assert loaded.settings.strategy.ram_limit is not None
    assert loaded.settings.strategy.ram_limit.limit_bytes == 24 << 30
    assert loaded.settings.strategy.context_tokens == 512
    assert loaded.origin("memory_strategy.ram_limit") == "model mine:latest"
    shown = json.loads(run(capsys, "config", "--model", "mine", "--json").out)["settings"]
    assert shown["memory_strategy.ram_limit"] == {"value": "24G", "origin": "model mine:latest"}
    assert "did you mean" in run(capsys, "config", "--model", "min:latest", code=3).err
    monkeypatch.setenv("MOERUN_RAM_LIMIT", "2G")
    loaded = read_settings(flags, profile_of_name("mine"))
    assert loaded.origin("memory_strategy.ram_limit") == "MOERUN_RAM_LIMIT"
    plan = json.loads(run(capsys, "plan", "mine", "--json").out)
    assert plan["plan"]["context_tokens"] == 512


def test_what_a_model_carries_goes_with_each_request_and_flags_win(here, capsys, weights):
    text = MODELFILE.format(path=weights) + 'TEMPLATE "{{ .System }}|{{ .Prompt }}|{{ .Response }}"'
    create(here, capsys, MODELFILE.format(path=weights))
    create(here, capsys, text, name="templated")

    def carried(name, **changes):
        asked = {"maximum_tokens": None, "is_limit_given": False, "system": None, **changes}
        sampling = asked.pop("sampling", Sampling())
        return carried_by(profile_of_name(name), sampling=sampling, **asked)

    question = (Message(role="user", content="What?"),)
    mine = carried("mine")
    request = mine.request(mine.system, question)
    assert [message.content for message in request.messages] == [
        "Be brief.",
        "Hello",
        "Hi",
        "What?",
    ]
    assert (request.sampling.temperature, request.maximum_tokens) == (0.1, 8)
    assert request.stop == ("x y",)
    other = carried("mine", sampling=Sampling(temperature=2.0), system="S", is_limit_given=True)
    assert (other.sampling.temperature, other.system, other.maximum_tokens) == (2.0, "S", None)
    prompted = carried("templated")
    request = prompted.request(prompted.system, question)
    assert request.template_prompt == "Be brief.|Hello|Hi|What?|"
    assert request.replaces_template


def test_a_model_made_of_another_keeps_what_it_does_not_change(here, capsys, weights):
    create(here, capsys, MODELFILE.format(path=weights))
    create(here, capsys, "FROM mine\nPARAMETER temperature 0.9\nSYSTEM Be long.", name="child")
    shown = json.loads(run(capsys, "show", "child", "--json").out)
    assert shown["parameters"]["temperature"] == 0.9
    assert shown["parameters"]["stop"] == ["x y"]
    assert shown["system"] == "Be long."
    run(capsys, "rm", "mine")
    assert json.loads(run(capsys, "show", "child", "--json").out)["licenses"] == ["Take it."]


def test_headers_are_read_once(here, capsys, weights, tmp_path):
    os.rename(weights, here / "near.gguf")
    first = run(capsys, "list").out
    book = json.loads((tmp_path / "state" / "headers.json").read_text())
    entry = book["entries"][str(here / "near.gguf")]
    entry["facts"]["digest"] = "f" * 64  # told from memory, not from the file
    (tmp_path / "state" / "headers.json").write_text(json.dumps(book))
    assert "ffffffffffff" in run(capsys, "list").out
    os.utime(here / "near.gguf", (1, 1))
    again = run(capsys, "list").out
    assert first.split("near")[1].split()[0] == again.split("near")[1].split()[0]


def test_requests_of_others_keep_what_they_say_and_get_the_rest(here, capsys, weights):
    create(here, capsys, MODELFILE.format(path=weights))
    carried = carried_by(profile_of_name("mine"))
    asked = GenerationRequest(
        messages=(Message(role="system", content="Own."), Message(role="user", content="Q")),
        sampling=Sampling(top_k=3),
        stop=("own",),
    )
    done = carried.applied_to(asked)
    assert [message.content for message in done.messages] == ["Own.", "Hello", "Hi", "Q"]
    assert (done.sampling.top_k, done.sampling.temperature) == (3, 0.1)
    assert (done.stop, done.maximum_tokens) == (("own",), 8)
    raw = carried.applied_to(GenerationRequest(prompt="raw", maximum_tokens=2))
    assert (raw.prompt, raw.messages, raw.maximum_tokens) == ("raw", (), 2)
    assert raw.stop == ("x y",)


def test_a_server_asks_the_model_after_its_own_settings_were_read(here, capsys, weights):
    create(here, capsys, MODELFILE.format(path=weights))
    profile = profile_of_name("mine")
    assert profile is not None
    asked = ModelSettings(origin="model mine:latest", values=profile.settings)
    (here / "moerun.yaml").write_text("memory_strategy:\n  ram_limit: 1G\n")
    over_file = with_model(load_settings(), asked)
    assert over_file.origin("memory_strategy.ram_limit") == "model mine:latest"
    below_flag = with_model(load_settings({"ram_limit": "3G"}), asked)
    assert below_flag.origin("memory_strategy.ram_limit") == "--ram"
    assert below_flag.origin("context") == "model mine:latest"
    foreign = ModelSettings(origin="model x", values=(("workers", "h:1"),))
    with pytest.raises(ConfigError, match="a model may not set 'workers'"):
        with_model(load_settings(), foreign)


def test_the_modelfile_that_show_prints_makes_the_same_model(here, capsys, weights):
    create(here, capsys, MODELFILE.format(path=weights))
    for name in ("mine", "demo"):  # the demo has a template in Jinja, which no Modelfile takes
        text = run(capsys, "show", name, "--modelfile").out
        create(here, capsys, text, name=f"{name}-again")
        parts = [run(capsys, "show", each, "--parameters").out for each in (name, f"{name}-again")]
        assert parts[0] == parts[1]


@pytest.mark.parametrize("verb", [("create", "new"), ("cp", "demo", "new"), ("rm", "mine")])
def test_a_store_that_cannot_be_changed_is_told(here, capsys, monkeypatch, verb):
    (here / "Modelfile").write_text("FROM demo")
    in_the_way = here / "file"
    in_the_way.write_text("no folder")
    monkeypatch.setenv("MOERUN_MODELS", str(in_the_way))
    said = run(capsys, *verb, code=3).err
    assert f"the store {in_the_way} cannot be changed: " in said
    assert "MOERUN_MODELS" in said


def test_a_modelfile_without_end_is_not_read_to_it(here, capsys):
    said = run(capsys, "create", "new", "-f", "/dev/zero", code=2).err
    assert "/dev/zero has more than 4,194,304 bytes, so it is no Modelfile" in said


def test_nobody_is_told_to_pull_a_path(here, capsys):
    said = create(here, capsys, "FROM ./nowhere.gguf", code=3).err
    assert "moerun pull" not in said
    assert "folder of the Modelfile" in said


def test_a_proxy_whose_address_is_none_is_told(capsys, monkeypatch):
    from moerun.store import http_connection

    monkeypatch.delenv("MOERUN_REGISTRY")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@host:port")
    monkeypatch.delenv("https_proxy", raising=False)
    http_connection._proxies.cache_clear()
    try:
        said = run(capsys, "pull", "qwen3:30b", code=2).err
    finally:
        http_connection._proxies.cache_clear()
    assert "HTTPS_PROXY does not hold the address of a proxy" in said
    assert "secret" not in said


def test_a_broken_manifest_is_told_by_its_name(here, capsys, weights, tmp_path):
    create(here, capsys, MODELFILE.format(path=weights))
    found = [path for path in tmp_path.rglob("manifests/**/mine/latest") if path.is_file()]
    found[0].write_text("[]")
    said = run(capsys, "show", "mine", code=3).err
    assert "mine:latest: the manifest is not one of schema 2" in said
    assert str(found[0]) in said


def test_an_entry_that_is_not_installed_is_not_removed(here, capsys):
    said = run(capsys, "rm", "qwen3-30b-a3b", code=2).err
    assert (
        "'qwen3-30b-a3b' is an entry of the catalogue, and no model of moerun's own store" in said
    )


def test_no_host_is_asked_for_what_comes_with_moerun(here, capsys):
    assert "demo comes with moerun" in run(capsys, "pull", "demo", code=2).err


def test_a_manifest_that_cannot_be_read_is_told_of_and_can_be_removed(
    here, capsys, weights, tmp_path
):
    create(here, capsys, MODELFILE.format(path=weights))
    (place,) = (tmp_path / "models" / "manifests").rglob("latest")
    place.write_text("{ no manifest")
    listed = run(capsys, "list")
    assert "mine:latest" in listed.out
    assert "Note: mine:latest cannot be run: the manifest is not one of schema 2" in listed.err
    document = json.loads(run(capsys, "list", "--json").out)
    (entry,) = (model for model in document["models"] if model["name"] == "mine:latest")
    assert "the manifest is not one of schema 2" in entry["error"]
    assert "the manifest is not one of schema 2" in run(capsys, "show", "mine", code=3).err
    assert "Note:" not in run(capsys, "list", "other").err
    run(capsys, "rm", "mine")
    assert "mine" not in run(capsys, "list").out


def test_an_adapter_is_a_layer_that_is_shown_planned_copied_and_removed(here, capsys, weights):
    shape = {t.name: t.shape for t in read_model(weights).tensors}
    matrices = {name: shape[name] for name in shape if name.endswith("attn_output.weight")}
    adapter = write_adapter(here / "adapter.gguf", matrices)
    create(here, capsys, f"FROM {weights}\n", name="bare")
    create(here, capsys, f"FROM {weights}\nADAPTER ./adapter.gguf\n")
    shown = json.loads(run(capsys, "show", "mine", "--json").out)
    (kept,) = shown["adapters"]
    assert kept["size_bytes"] == adapter.stat().st_size
    assert "Adapters" in run(capsys, "show", "mine").out
    assert f"ADAPTER {kept['path']}" in run(capsys, "show", "mine", "--modelfile").out
    models = json.loads(run(capsys, "list", "--json").out)["models"]
    size = {model["name"]: model["size_bytes"] for model in models}
    assert 0 <= size["mine:latest"] - size["bare:latest"] - adapter.stat().st_size < 1000
    added = sum(entry.size_bytes for entry in read_file(adapter).tensors)
    assert weights_planned(capsys, "mine") - weights_planned(capsys, "bare") == added
    run(capsys, "cp", "mine", "again")
    run(capsys, "rm", "mine")
    create(here, capsys, "FROM again\nSYSTEM Be brief.\n", name="child")
    run(capsys, "rm", "again")
    assert weights_planned(capsys, "child") - weights_planned(capsys, "bare") == added
    assert Path(kept["path"]).is_file()
    run(capsys, "rm", "child")
    assert not Path(kept["path"]).exists()


def weights_planned(capsys, name: str) -> int:
    """Return what the plan charges for weights, wherever they lie."""
    document = json.loads(run(capsys, "plan", name, "--json", "--ram", "8G").out)
    charges = document["plan"]["ledger"]["charges"]
    return sum(c["size_bytes"] for c in charges if c["kind"].endswith("_weights"))


def test_an_adapter_of_another_model_makes_nothing(here, capsys, weights):
    write_adapter(here / "adapter.gguf", {"blk.0.attn_q.weight": (32, 32)}, architecture="llama")
    said = create(here, capsys, f"FROM {weights}\nADAPTER adapter.gguf\n", code=3)
    assert "adapter.gguf is an adapter for models of llama" in said.err
    assert "mine" not in run(capsys, "list").out


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("[{{ .System }}]{{ .Prompt }}>{{ .Response }}", "[Be brief.]What?>"),
        ("{{ range $i, $m := .Messages }}{{ call .It }}{{ end }}", ""),  # more than is understood
    ],
)
def test_a_template_that_came_with_a_model_stands_in_where_the_file_has_none(template, written):
    profile = ModelProfile(name="pulled", system="Be brief.", template=template)
    carried = carried_by(profile)
    request = carried.request(carried.system, (Message(role="user", content="What?"),))
    assert request.template_prompt == written
    assert [message.content for message in request.messages] == ["Be brief.", "What?"]
    if written:
        assert not request.replaces_template
    tools = (Tool(name="clock"),)
    asked = carried.applied_to(GenerationRequest(messages=request.messages, tools=tools))
    assert asked.template_prompt == ""  # of tools it knows nothing
