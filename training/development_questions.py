"""Questions that show, while the model trains, how it does on wording that it never saw.

They stand in for what users type, and what was missed led to more phrasings of its kind, so their
figure is no measure of quality. The shipped fixtures have paraphrases of their own, so that
looking at these while working on the text does not flatter the figures reported there. A question
that has gone into the text has to leave this list; `tests/test_demo_fixtures.py` insists.

Knows: questions and the intents that they belong to.
Does not know: answers.
"""

from typing import Final

DEVELOPMENT_QUESTIONS: Final[tuple[tuple[str, str], ...]] = (
    ("my colleague keeps praising moerun but what does it really offer", "what_is_moerun"),
    ("my pc is small and the model is 200 GB, how is that supposed to work", "benefit"),
    ("I'd like a quick try without fetching gigabytes first", "demo_model"),
    ("ollama does the job for me, what's in it for me here", "compared_with_ollama"),
    ("do I owe anybody money when I use it at the office", "license"),
    ("do you have something for windows 11", "platforms"),
    ("sparse versus dense, what's that about", "moe"),
    ("an expert that is shared, how does it differ from the rest", "shared_expert"),
    ("does the operating system page the weights in on demand", "mmap"),
    ("models with 4 bits, how come they're smaller", "quantization"),
    ("what are the three kinds of memory you talk about", "tiers"),
    ("tell me the sequence in which memory gets filled", "placement_order"),
    ("is a graphics card mandatory for this", "no_gpu"),
    ("a glance at the placement ahead of time, please", "plan"),
    ("what would a second memory stick, 64 GB in total, bring", "plan_ram"),
    ("structured output please, for a dashboard", "json"),
    ("show the RAM and VRAM in use by the thing that's running", "stat"),
    ("difference between a gigabyte and a gibibyte here", "units"),
    ("what's the list of codes it can return", "exit_codes"),
    ("status 5 came back", "exit_5"),
    ("nothing fits, what does moerun tell me then", "does_not_fit"),
    ("there's an odd failure and I want the whole traceback", "debug"),
    ("tell me the score of yesterday's game", "off_topic"),
)
