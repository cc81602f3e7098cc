"""From what was typed to what a plan is made of: settings, model, machine; shared by the verbs.

Knows: the order of asking, and when a machine is imagined instead of probed.
Does not know: the engine (a verb that runs asks it), or how anything is shown.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moerun.cli.options import PlacementFlags
from moerun.errors import ConfigError, ModelError, UsageError
from moerun.settings.description import LoadedSettings

if TYPE_CHECKING:
    from moerun.machine.description import Machine
    from moerun.model.catalog import CatalogEntry
    from moerun.model.description import Model
    from moerun.planning.advice import Advice
    from moerun.planning.plan import Plan
    from moerun.planning.strategy import Strategy
    from moerun.settings.description import ModelSettings
    from moerun.store.installed import InstalledModel
    from moerun.store.profile import ModelProfile
    from moerun.store.references import CatalogReference

_VRAM_KEY = "vram_limit"
_RAM_KEY = "ram_limit"
_WITHOUT_GPU = frozenset({"cpu", "blas", "rpc"})


def read_settings(flags: PlacementFlags, profile: "ModelProfile | None" = None) -> LoadedSettings:
    """Return the settings of all layers under the flags; ConfigError names key and origin.

    `profile` is what the model carries; it wins over files, and variables and flags win over it.
    """
    from moerun.settings.load import load_settings

    file = _file(flags.config_file, "--config")
    return load_settings(dict(flags.settings), file=file, model=_settings_of(profile))


def check_model_settings(parameters: tuple[tuple[str, Any], ...], *, origin: str) -> None:
    """Refuse parameters of a Modelfile whose settings cannot be meant; nothing else is read."""
    from moerun.settings.load import check_model
    from moerun.store.profile import ModelProfile

    settings = _settings_of(ModelProfile(name=origin, parameters=parameters))
    if settings is not None:
        check_model(settings)


def _settings_of(profile: "ModelProfile | None") -> "ModelSettings | None":
    from moerun.settings.description import ModelSettings

    if profile is None or not profile.settings:
        return None
    return ModelSettings(origin=f"model {profile.name}", values=profile.settings)


def profile_of_name(name: str) -> "ModelProfile | None":
    """Return what a model at hand carries, None for a name that means none."""
    from moerun.store.profile import profile_of

    found = _stored_model(name)
    return profile_of(found) if found is not None else None


def path_of_name(name: str) -> Path | None:
    """Return the file of a stored model, None for a name that means none, or a file itself."""
    found = _stored_model(name)
    return found.paths[0] if found is not None else None


def _stored_model(name: str) -> "InstalledModel | None":
    from moerun.store.names import resolve_file

    if resolve_file(name) is not None:  # files carry nothing
        return None
    from moerun.store.library import find_model

    try:
        return find_model(name)
    except (UsageError, ModelError):
        return None  # what is wrong with it is told where it is read


def read_named_model(name: str) -> "Model":
    """Return the model that a name or a path means, from its header alone."""
    from moerun.model.gguf_header import read_model
    from moerun.store.names import resolve_file, resolve_model

    if (path := resolve_file(name)) is not None:
        return read_model(path)
    from moerun.store.library import require_model  # a file needs no store to be read

    try:
        found = require_model(name)
    except UsageError:  # what no store can hold: said as of a file that is not there
        return read_model(resolve_model(name))
    from moerun.store.described import described_model

    return described_model(found)


def model_to_plan(name: str) -> "tuple[Model, CatalogEntry | None]":
    """Return the model of a name; what is not at hand may be in the catalogue, or at a host.

    The entry comes with the model that was derived from it, None with one that was read. Of a
    model at a host (`hf.co/...`, `user/repo`, or a registry) only the headers are fetched.
    """
    from moerun.errors import ModelNotFound
    from moerun.model.catalog import catalog_entry
    from moerun.model.catalog_model import catalog_model

    try:
        return read_named_model(name), None
    except ModelNotFound:
        from moerun.store.remote_names import said_remote

        reference = catalog_reference(name)
        if reference is None and (remote := said_remote(name)) is not None:
            from moerun.store.remote_header import remote_model

            return remote_model(remote), None
        if reference is None:
            return _model_of_library(name), None
    return catalog_model(reference.entry, reference.quantization), catalog_entry(reference.entry)


def _model_of_library(name: str) -> "Model":
    """Return what ollama.com has under a bare word; ModelNotFound when it has nothing."""
    from moerun.cli.bare_names import asking_library, library_reference
    from moerun.store.remote_header import remote_model

    reference = library_reference(name)
    if reference is None:
        return read_named_model(name)  # which says again what is wrong
    with asking_library(name):
        return remote_model(reference)


def entry_to_advise_on(name: str) -> "CatalogEntry":
    """Return the entry whose quantizations are compared; ModelNotFound for any other name."""
    from moerun.errors import ModelNotFound
    from moerun.model.catalog import catalog_entry

    reference = catalog_reference(name)
    if reference is None:
        raise ModelNotFound(
            f"The catalogue has no '{name[:80]}', and --advise compares what it knows.",
            hint="`moerun plan` lists its entries, those with the source 'catalog'",
        )
    return catalog_entry(reference.entry)


def advice_for(entry: "CatalogEntry", machine: "Machine", strategy: "Strategy") -> "Advice":
    """Plan all quantizations of an entry, and choose one."""
    from moerun.model.catalog_model import derived_model
    from moerun.planning.advice import advise

    models = tuple(derived_model(entry.name, label) for label in entry.quantizations)
    return advise(models, machine, strategy, usual=entry.recommended)


def advice_beside(
    entry: "CatalogEntry", model: "Model", plan: "Plan", machine: "Machine", strategy: "Strategy"
) -> "Advice | None":
    """Return advice on the entry whose usual quantization was planned, None where it is plain.

    Only what could suit better is planned, since somebody waits for another answer.
    """
    from moerun.model.catalog_model import derived_bytes, derived_model
    from moerun.planning.advice import advise, labels_worth_planning
    from moerun.planning.summary import summarize

    usual, verdict = model.quantization, summarize(model, plan).verdict
    sizes = tuple((label, derived_bytes(entry.name, label)) for label in entry.quantizations)
    labels = labels_worth_planning(sizes, machine, usual=usual, verdict=verdict)
    if not labels:
        return None
    models = tuple(derived_model(entry.name, label) for label in labels)
    return advise((model, *models), machine, strategy, usual=usual)


def catalog_reference(name: str) -> "CatalogReference | None":
    """Return what a name means in the catalogue, None when it means anything else, or nothing."""
    from moerun.errors import ModelNotFound
    from moerun.store.references import CatalogReference, parse_reference

    try:
        reference = parse_reference(name)
    except (UsageError, ModelNotFound):  # a name that only files have
        return None
    return reference if isinstance(reference, CatalogReference) else None


def machine_to_plan_for(
    flags: PlacementFlags, loaded: LoadedSettings, model_path: Path | None = None
) -> "Machine":
    """Return the machine that a dry run plans for; the engine is not asked.

    It is the one in the file of `--machine`, else the one at hand; `--vram` gives GPUs to a
    machine that has none, and `--ram` memory to one that has less.
    """
    file = _file(flags.machine_file, "--machine")
    machine = _machine_at_hand_or_in_file(file, model_path)
    if workers := loaded.settings.workers:
        machine = _with_workers(machine, workers, is_at_hand=file is None)
    machine = _with_imagined_vram(machine, flags, loaded)
    machine = _with_imagined_ram(machine, flags, loaded)
    return with_limits_checked(machine, loaded)


def _with_workers(machine: "Machine", workers: tuple[str, ...], *, is_at_hand: bool) -> "Machine":
    """Return the machine with what its workers lend; a machine in a file has its own."""
    if is_at_hand:
        from moerun.worker.look import add_workers

        return add_workers(machine, workers)
    note = f"a machine in a file brings its own workers; not asked: {', '.join(workers)}"
    return replace(machine, notes=(*machine.notes, note))


def _machine_at_hand_or_in_file(file: Path | None, model_path: Path | None) -> "Machine":
    if file is not None:
        from moerun.machine.document import read_machine

        return read_machine(file)
    from moerun.engine.installation import installed_backends
    from moerun.machine.probe import probe_machine

    backends = frozenset(installed_backends())
    # An engine for the processor alone has no devices; of any other they are not known unasked.
    devices = () if backends and backends <= _WITHOUT_GPU else None
    machine = probe_machine(model_path=model_path, engine_devices=devices, engine_backends=backends)
    if not machine.gpus:
        return machine
    from moerun.worker.look import with_known_rate

    return with_known_rate(machine)


def with_limits_checked(machine: "Machine", loaded: LoadedSettings) -> "Machine":
    """Refuse a list of VRAM limits that does not name one for each GPU; note limits of no GPU."""
    limits = loaded.settings.strategy.vram_limit
    key = f"memory_strategy.{_VRAM_KEY}"
    origin = loaded.origin(key)
    if limits is None or (machine.gpus and len(limits) in (1, len(machine.gpus))):
        return machine
    if not machine.gpus:
        note = f"vram_limit ({origin}) has no effect: there is no GPU that could be used"
        return replace(machine, notes=(*machine.notes, note))
    count = len(machine.gpus)
    raise ConfigError(
        f"{origin}: {len(limits)} limits are given for {count} GPU{'' if count == 1 else 's'}",
        key=key,
        origin=origin,
        hint="give one limit for all GPUs, or one for each; 'moerun doctor' lists them",
    )


def _with_imagined_vram(
    machine: "Machine", flags: PlacementFlags, loaded: LoadedSettings
) -> "Machine":
    """Give a machine without GPUs the ones that `--vram` names."""
    from moerun.machine.hypothetical import with_vram

    limits = loaded.settings.strategy.vram_limit
    if machine.gpus or flags.given(_VRAM_KEY) is None or limits is None:
        return machine
    sizes = tuple(limit.limit_bytes for limit in limits if limit.limit_bytes is not None)
    if len(sizes) < len(limits):
        raise UsageError(
            "--vram: there is no GPU here whose share could be taken",
            hint="give a size, such as --vram 24G, to plan for such a GPU",
        )
    return with_vram(machine, sizes) if any(sizes) else machine


def _with_imagined_ram(
    machine: "Machine", flags: PlacementFlags, loaded: LoadedSettings
) -> "Machine":
    """Give a machine the memory that `--ram` names where it has less, or is imagined anyway."""
    from moerun.machine.hypothetical import with_ram

    limit = loaded.settings.strategy.ram_limit
    if flags.given(_RAM_KEY) is None or limit is None or not limit.limit_bytes:
        return machine
    is_imagined = any(gpu.is_hypothetical for gpu in machine.gpus)
    if limit.limit_bytes > machine.host.total_bytes or is_imagined:
        return with_ram(machine, limit.limit_bytes)
    return machine


def _file(path: str | None, flag: str) -> Path | None:
    """Return the path that a flag names, None when it was not given."""
    if path is None:
        return None
    if not path.strip() or "\0" in path:
        raise UsageError(f"{flag}: '{path}' is not the path of a file")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # `~` of an unknown user
        raise UsageError(f"{flag}: '{path}' is not the path of a file: {error}") from error
