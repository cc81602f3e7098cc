"""`moerun serve`: the APIs of Ollama and OpenAI for the models at hand.

Ask the settings, decide on an address, do until a signal ends it.
"""

from typing import Final

from moerun.cli.options import PlacementFlags, placement_variables, with_placement_flags

VARIABLES: Final[dict[str, str]] = {
    "MOERUN_HOST": "address: 127.0.0.1:11434 (else 11435), :8080, 0.0.0.0",
    "MOERUN_API_KEY": "token that every request must bear",
    "MOERUN_ORIGINS": "further web origins that may ask, with commas between",
    "MOERUN_KEEP_ALIVE": "how long a model stays: 5m, 0, -1 for ever",
    "MOERUN_NUM_PARALLEL": "answers that one model makes at once; 4",
    "MOERUN_MAX_QUEUE": "requests that may wait; 512",
    **placement_variables(),
}


@with_placement_flags()
def serve(*, flags: PlacementFlags) -> None:
    """Serve models over HTTP."""
    import logging

    from moerun.cli.open_model import say, warn
    from moerun.cli.planning_steps import read_settings
    from moerun.server.serving import serve_forever

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    placement = read_settings(flags)
    for note in placement.notes:
        warn(note)
    serve_forever(placement, tell=say)
