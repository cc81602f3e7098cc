"""Asking workers what they lend, all at once, each within a few seconds.

The side channel is asked first: it tells the engine's version, which is compared before anything
connects to the engine's own port. A worker without one is greeted in the engine's protocol.

Knows: the order of questions, and what makes a worker unfit.
Does not know: plans, or how a worker is watched later.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from moerun.engine.abi import PACKAGE
from moerun.engine.workers import ask_worker
from moerun.errors import EngineMismatch, EngineRefused, MoerunError
from moerun.machine.workers import LentDevice, LinkRate, Worker, WorkerAddress, WorkerOffer
from moerun.worker.side_client import (
    NoSideChannel,
    ask_offer,
    measure_link,
    open_side_channel,
)
from moerun.worker.side_lines import SideChannelError, SideConnection

_POLL_S: Final = 0.05

Recall = Callable[[WorkerAddress, WorkerOffer], LinkRate | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long is waited: for an answer of a side channel, for all that an engine says.

    `puts_away_s` is for a worker that still frees what its last client had.
    """

    side_s: float = 3.0
    greeting_s: float = 4.0
    puts_away_s: float = 2.0


_USUAL: Final = Patience()


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The workers that answered, in the order they were named, and why the others are not used."""

    workers: tuple[Worker, ...]
    refusals: tuple[str, ...]


def survey_workers(
    addresses: tuple[WorkerAddress, ...],
    *,
    engine_version: str | None,
    recall: Recall = lambda address, offer: None,
    patience: Patience = _USUAL,
) -> Survey:
    """Ask all workers; `recall` gives what was measured of one before, None to measure anew."""
    found: dict[WorkerAddress, Worker | str] = {}

    def ask(address: WorkerAddress) -> None:
        try:
            found[address] = ask_one(
                address, engine_version=engine_version, recall=recall, patience=patience
            )
        except MoerunError as error:
            found[address] = error.message.rstrip(".")

    threads = [threading.Thread(target=ask, args=(address,)) for address in addresses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = without_doubles([found[address] for address in addresses])
    return Survey(
        workers=tuple(answer for answer in answers if isinstance(answer, Worker)),
        refusals=tuple(answer for answer in answers if isinstance(answer, str)),
    )


def without_doubles(answers: list[Worker | str]) -> list[Worker | str]:
    """Refuse a worker that answered under two names, whose memory would be counted twice."""
    first: dict[str, str] = {}
    kept: list[Worker | str] = []
    for answer in answers:
        if isinstance(answer, str) or answer.offer is None:
            kept.append(answer)
            continue
        endpoint = answer.address.endpoint
        known = first.setdefault(answer.offer.instance, endpoint)
        same = f"The worker at {endpoint} is the one at {known}, which is used"
        kept.append(answer if known == endpoint else same)
    return kept


def ask_one(
    address: WorkerAddress,
    *,
    engine_version: str | None,
    recall: Recall = lambda address, offer: None,
    patience: Patience = _USUAL,
) -> Worker:
    """Return one worker; EngineError with a sentence when it cannot be used now."""
    try:
        with open_side_channel(address, within_s=patience.side_s) as side:
            offer = _ask_until_idle(side, patience)
            _require_fit(address, offer, engine_version)
            link = recall(address, offer) or measure_link(side)
    except NoSideChannel:
        return _plain(address, patience)
    except SideChannelError as error:
        raise EngineRefused(
            f"The worker at {address.endpoint} cannot be used: asked at port "
            f"{address.side_port}, {error}.",
            hint="is it frozen, or is something else listening there?",
        ) from error
    devices = ask_worker(address.endpoint, timeout_s=patience.greeting_s)
    if len(devices) != len(offer.devices):
        raise EngineRefused(
            f"The worker at {address.endpoint} lends {len(offer.devices)} devices by its side "
            f"channel and {len(devices)} by its engine; the two ports belong to different workers."
        )
    named = tuple(
        replace(said, free_bytes=own.free_bytes, total_bytes=own.total_bytes)
        for said, own in zip(offer.devices, devices, strict=True)
    )
    return Worker(address=address, devices=named, offer=offer, link=link)


def _ask_until_idle(side: SideConnection, patience: Patience) -> WorkerOffer:
    """Ask what is offered; a worker that is busy may be putting away what its last client had."""
    ends_s = time.monotonic() + patience.puts_away_s
    while True:
        offer = ask_offer(side, within_s=patience.side_s)
        if not offer.is_busy or time.monotonic() > ends_s:
            return offer
        time.sleep(_POLL_S)


def _require_fit(address: WorkerAddress, offer: WorkerOffer, engine_version: str | None) -> None:
    own, theirs = (_public(version or "") for version in (engine_version, offer.engine_version))
    if engine_version is not None and own != theirs:
        raise EngineMismatch(
            f"The worker at {address.endpoint} runs {PACKAGE} {theirs or 'of unknown version'}, "
            f"and this machine {own}; both must be of one version.",
            hint="install the same version of moerun on both, and `make run` there",
        )
    if offer.is_busy:
        raise EngineRefused(
            f"The worker at {address.endpoint} serves another program, and a worker serves one at "
            "a time.",
            hint="start another worker there, on another port",
        )


def _public(version: str) -> str:
    """Return a version without its local part, which names a build of the same source."""
    return version.partition("+")[0]


def _plain(address: WorkerAddress, patience: Patience) -> Worker:
    devices = tuple(
        LentDevice(name="a device", free_bytes=own.free_bytes, total_bytes=own.total_bytes)
        for own in ask_worker(address.endpoint, timeout_s=patience.greeting_s)
    )
    return Worker(address=address, devices=devices)
