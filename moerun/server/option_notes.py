"""Options of requests that change nothing here, told in the log once for each model.

Clients send the same options with every request; a line each time would hide all others.

Knows: which of ollama's options have no effect, and what was told already.
Does not know: what the other options mean.
"""

import logging
from typing import Final

from moerun.server.bodies import Fields

_LOG: Final = logging.getLogger(__name__)
_OF_OLD: Final = frozenset(
    {"tfs_z", "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock",
     "numa", "main_gpu", "use_mmap", "draft_num_predict", "num_gqa", "use_mlx",
     "rope_frequency_base", "rope_frequency_scale"}
)  # fmt: skip
_KNOWN: Final = frozenset(
    {"num_ctx", "num_predict", "num_keep", "temperature", "top_k", "top_p", "min_p", "typical_p",
     "repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty", "mirostat",
     "mirostat_tau", "mirostat_eta", "seed", "stop", "num_batch", "num_gpu", "num_thread"}
)  # fmt: skip
_MOST_TOLD: Final = 1000  # names come from clients, who could think of any number


class OptionNotes:
    """What the log was told of options; one for each server."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def tell(self, model: str, options: Fields) -> None:
        """Tell of the options of a request that have no effect, if nobody did before."""
        given = set(options.values)
        self._tell(model, given - _KNOWN - _OF_OLD, "unknown options are passed over")
        self._tell(model, given & _OF_OLD, "options without effect here")
        number = options.values.get("num_gpu")
        if isinstance(number, int) and number > 0:
            said = "passed over unless it is 0, since the plan places the layers"
            self._tell(model, {"num_gpu"}, said)

    def _tell(self, model: str, names: set[str], said: str) -> None:
        new = sorted(name for name in names if (model, name) not in self._told)
        if not new or len(self._told) >= _MOST_TOLD:
            return
        self._told |= {(model, name) for name in new[:_MOST_TOLD]}
        shown = ", ".join(name[:40] for name in new)[:200]
        _LOG.warning("%s: %s: %s", model, said, shown.encode("unicode_escape").decode("ascii"))
