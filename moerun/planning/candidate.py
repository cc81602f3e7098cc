"""One way to place everything on one set of devices, and what makes it better than another.

Knows: what a candidate holds where, what it lacks, and its rank.
Does not know: how candidates are found, or which context is tried.
"""

from dataclasses import dataclass

from moerun.machine.description import DeviceId
from moerun.planning.cargo import PartBytes
from moerun.planning.fixed_charges import Work
from moerun.planning.packing import Run
from moerun.planning.slot_packing import SlotRun
from moerun.planning.streaming import CacheRoom
from moerun.planning.value import Cost, Held, Standing, cost_key

Rank = tuple[Cost, int, int, float]
"""What lies in slower memory, devices, layers whose experts lie on other devices, slowness.

Slowness is the bandwidth of the slowest device, negative; 0 where it is not known.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNeed:
    """What host memory must hold beside routed experts that are free to lie elsewhere."""

    work: Work
    fixed_bytes: int
    layer_bytes: int
    output_bytes: int
    staging_bytes: int

    @property
    def total_bytes(self) -> int:
        """Return all of it."""
        return self.fixed_bytes + self.layer_bytes + self.output_bytes + self.staging_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to place everything. `ram_parts` and `ssd_parts` have an entry for each layer.

    `cache` is what experts on SSD stream through, one below its floor only where streaming was
    asked for, since it is what does not fit then; `missed_cache` is one that was left out for that.
    `slots` has an entry for each run where VRAM is for slots.
    """

    devices: tuple[DeviceId, ...]
    runs: tuple[Run, ...]
    host_layers: int
    has_staging: bool
    need: HostNeed
    room_bytes: int
    ram_parts: tuple[PartBytes, ...]
    ssd_parts: tuple[PartBytes, ...]
    ram_expert_bytes: int
    ssd_expert_bytes: int
    held: tuple[Held, ...]
    bandwidth_bytes_per_s: float
    fits: bool
    cache: CacheRoom | None = None
    missed_cache: CacheRoom | None = None
    slots: tuple[SlotRun, ...] = ()

    @property
    def is_pipelined(self) -> bool:
        """Whether batches may run through several devices in turn."""
        return is_pipelined(len(self.devices), has_staging=self.has_staging)

    @property
    def short_bytes(self) -> int:
        """Return how much memory is missing, of devices or the host; 0 when it fits."""
        if self.fits:
            return 0
        held = self.ram_expert_bytes
        if self.cache is not None:
            held = self.cache.minimum_bytes + self.cache.beside_bytes
        missing = self.need.total_bytes + held - self.room_bytes
        return max(0, missing) + self.short_slot_bytes if self.short_slot_bytes else missing

    @property
    def short_slot_bytes(self) -> int:
        """Return what devices lack for slots that are worth having."""
        return sum(each.short_bytes for each in self.slots)

    @property
    def slot_bytes(self) -> int:
        """Return what all slots hold."""
        return sum(each.size_bytes for each in self.slots)

    @property
    def slow_bytes(self) -> tuple[int, int, int]:
        """Return what is not on GPUs: dense and state, experts in no slot, experts on SSD."""
        experts = self.ram_expert_bytes + self.ssd_expert_bytes - self.slot_bytes
        on_ssd = max(0, self.ssd_expert_bytes - self.cache_bytes)
        return self.need.layer_bytes + self.need.output_bytes, experts, on_ssd

    @property
    def cache_bytes(self) -> int:
        """Return what holds experts that stream; 0 where none do."""
        return 0 if self.cache is None else self.cache.cache_bytes

    @property
    def strange_layers(self) -> int:
        """Return how many layers have experts on another device than the rest of them."""
        return sum(run.strange_layers for run in self.runs)

    @property
    def remote_layers(self) -> int:
        """Return how many layers workers compute."""
        pairs = zip(self.runs, self.held, strict=True)
        return sum(r.end - r.first for r, held in pairs if held.standing is not Standing.LOCAL)

    @property
    def remote_expert_bytes(self) -> int:
        """Return the experts that workers hold."""
        return sum(h.expert_bytes for h in self.held if h.standing is not Standing.LOCAL)

    @property
    def cost(self) -> Cost:
        """Return what lies in slower memory than the best; of slots, what they may not answer."""
        dense, experts, on_ssd = self.slow_bytes
        experts += self.slot_bytes - sum(each.hit_bytes for each in self.slots)
        return cost_key(
            self.held, host_dense_bytes=dense, host_expert_bytes=experts, ssd_bytes=on_ssd
        )

    @property
    def rank(self) -> Rank:
        """Return what makes one candidate better than another: less is better."""
        return self.cost, len(self.devices), self.strange_layers, -self.bandwidth_bytes_per_s


def is_pipelined(device_count: int, *, has_staging: bool) -> bool:
    """Whether batches may run through several devices in turn: with no weight on the host.

    Belief: `pipeline_parallel` in src/llama-context.cpp @ llama-cpp-python 0.3.36 - checked by
    tests/engine/test_compute_buffers.py.
    """
    return device_count > 1 and not has_staging
