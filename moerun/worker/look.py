"""The machine with the rate of its RAM where that counts, and with what its workers lend.

Workers are asked in their own protocols, never through the engine, which would abort at a strange
answer and wait for ever for none.

Knows: that a worker which cannot be used is a note, and that links are measured once a day.
Does not know: what is asked, or what will be planned.
"""

from dataclasses import replace
from pathlib import Path

from moerun.engine.abi import installed_version
from moerun.engine.installation import installed_backends
from moerun.engine.look import look_at_machine
from moerun.machine.description import Gpu, Host, Machine
from moerun.machine.workers import parse_worker, with_workers
from moerun.places import state_folder
from moerun.worker.link_records import LinkRecords
from moerun.worker.survey import survey_workers

_WITHOUT_RPC = "the engine was built without RPC, so no worker is used; `make run` builds it anew"


def look_with_workers(
    workers: tuple[str, ...], *, model_path: Path | None = None, asks_always: bool = False
) -> Machine:
    """Return the machine at hand with the devices of the workers that answer.

    Where a card tells the rates of its memory and its link, that of RAM is known, too: with all
    three a plan can tell what slots for experts may gain.
    """
    machine = look_at_machine(model_path=model_path, asks_always=asks_always)
    if any(map(_tells_rates, machine.gpus)):
        machine = replace(machine, host=_with_rate(machine.host, LinkRecords(state_folder())))
    return add_workers(machine, workers)


def add_workers(machine: Machine, workers: tuple[str, ...]) -> Machine:
    """Return the machine with what its workers lend; each that cannot be used is a note."""
    if not workers:
        return machine
    backends = installed_backends()
    if backends and "rpc" not in backends:
        return replace(machine, notes=(*machine.notes, _WITHOUT_RPC))
    addresses = tuple(parse_worker(worker) for worker in workers)
    links = LinkRecords(state_folder())
    survey = survey_workers(addresses, engine_version=installed_version(), recall=links.recall)
    links.keep(survey.workers)
    found = with_workers(machine, survey.workers)
    if survey.workers:
        found = replace(found, host=_with_rate(found.host, links))
    return replace(found, notes=(*found.notes, *survey.refusals))


def with_known_rate(machine: Machine) -> Machine:
    """Return the machine with the rate of its RAM where a look within the last day measured it."""
    host = machine.host
    if host.memory_bandwidth_bytes_per_s is not None or not any(map(_tells_rates, machine.gpus)):
        return machine
    rate = LinkRecords(state_folder()).known_memory_rate(host.physical_cores)
    return replace(machine, host=replace(host, memory_bandwidth_bytes_per_s=rate))


def _tells_rates(gpu: Gpu) -> bool:
    is_known = gpu.memory_bandwidth_bytes_per_s is not None and gpu.link_bytes_per_s is not None
    return is_known and not gpu.shares_host_memory


def _with_rate(host: Host, links: LinkRecords) -> Host:
    """Return the host with the rate of its RAM, to which those of other memories are compared."""
    if host.memory_bandwidth_bytes_per_s is not None:
        return host
    rate = links.memory_rate(host.physical_cores, _measure_memory)
    return replace(host, memory_bandwidth_bytes_per_s=rate)


def _measure_memory(threads: int) -> float:
    from moerun.engine.memory_rate import measure_memory_rate  # numpy, and only once a day

    return measure_memory_rate(threads)
