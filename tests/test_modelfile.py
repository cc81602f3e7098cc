import pytest

from moerun.errors import UsageError
from moerun.settings.keys import KEYS, find_key
from moerun.store.modelfile import parse_modelfile
from moerun.store.parameters import PARAMETERS, Target, usable

WHOLE = '''
# a comment
FROM ./weights.gguf
parameter temperature 0.6
PARAMETER num_ctx 8192
PARAMETER stop "<|im_end|>"
PARAMETER stop USER:
PARAMETER ram_limit 24G
PARAMETER expert_residency {vram: 60%}
PARAMETER moe_cpu_layers 4
SYSTEM """You are brief.

Be kind."""
TEMPLATE "{{ .Prompt }}"
MESSAGE user Hello
MESSAGE assistant """Hi
there"""
LICENSE MIT
LICENSE "Apache-2.0"
'''


def test_a_modelfile_says_all_that_it_says():
    read = parse_modelfile(WHOLE)
    assert read.source == "./weights.gguf"
    assert dict(read.parameters) == {
        "temperature": 0.6,
        "num_ctx": "8192",
        "stop": ["<|im_end|>", "USER:"],
        "ram_limit": "24G",
        "expert_residency": "{vram: 60%}",
        "moe_cpu_layers": "4",
    }
    assert read.system == "You are brief.\n\nBe kind."
    assert read.template == "{{ .Prompt }}"
    assert read.messages == (("user", "Hello"), ("assistant", "Hi\nthere"))
    assert read.licenses == ("MIT", "Apache-2.0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Modelfile has no FROM"),
        ("FROM", "Modelfile:1: FROM names nothing"),
        ("FROM a\nFROM b", "Modelfile:2: FROM stands here again .first in line 1"),
        ("FROM a\nWISH b", "Modelfile:2: 'WISH' is no instruction"),
        ("FROM a\n=b", "Modelfile:2: '=b' is no instruction"),
        ("FROM a\nADAPTER", "Modelfile:2: ADAPTER wants the path of a file"),
        ('FROM a\nSYSTEM """never ends', "Modelfile:2: the text in triple quotes does not end"),
        ('FROM a\nSYSTEM """x""" y', "something stands behind"),
        ("FROM a\nPARAMETER temperature", "wants a name and a value"),
        (
            "FROM a\nPARAMETER temperature hot",
            "takes a number of at least 0, not 'hot'",
        ),
        ("FROM a\nPARAMETER temperature nan", "takes a number"),
        ("FROM a\nPARAMETER top_p 1.5", "between 0 and 1, not '1.5'"),
        ("FROM a\nPARAMETER temprature 1", "there is no parameter 'temprature'"),
        ("FROM a\nPARAMETER num_gpu 3", "num_gpu would have no effect: moerun places"),
        ("FROM a\nPARAMETER workers x:1", "there is no parameter 'workers'"),
        ("FROM a\nPARAMETER ssd_cache_path /x", "there is no parameter 'ssd_cache_path'"),
        ("FROM a\nPARAMETER seed 1\nPARAMETER seed 2", "seed is set a second time"),
        ("FROM a\nMESSAGE robot hi", "MESSAGE wants a role"),
    ],
)
def test_what_cannot_be_meant_names_its_line(text, message):
    with pytest.raises(UsageError, match=message):
        parse_modelfile(text)


def test_every_setting_of_memory_is_a_parameter_but_paths_and_workers():
    settings = {p.sets for p in PARAMETERS.values() if p.target is Target.SETTING}
    assert settings == {key.short for key in KEYS if not key.is_path and not key.is_personal}
    assert all(find_key(name) is not None for name in settings)


def test_what_a_stranger_wrote_is_used_as_far_as_it_is_sound():
    kept, notes = usable(
        {
            "temperature": 0.5,
            "top_k": 40.0,
            "stop": ["a", "b"],
            "top_p": "high",
            "min_p": [1],
            "seed": None,
            "num_gpu": 99,
            "surprise": 1,
        }
    )
    assert kept == {"temperature": 0.5, "top_k": 40, "stop": ["a", "b"]}
    assert len(notes) == 5
    assert any("num_gpu has no effect" in note for note in notes)
