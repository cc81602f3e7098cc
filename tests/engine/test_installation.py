"""That the files of the engine tell its backends, as the engine itself does."""

import pytest

from moerun.engine.child_probe import probe_engine
from moerun.engine.installation import installed_backends

pytestmark = pytest.mark.engine


def test_the_files_tell_what_the_engine_tells():
    probe = probe_engine()
    backends = installed_backends()
    assert "cpu" in backends
    assert ("rpc" in backends) is probe.has_rpc
    registries = {device.registry.lower().partition("[")[0] for device in probe.devices}
    named = {"mtl": "metal", "rocm": "hip"}
    assert {named.get(registry, registry) for registry in registries} <= set(backends)
