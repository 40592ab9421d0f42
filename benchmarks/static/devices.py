"""What three GPUs can do at most, and the time that these limits leave for some work: a prediction, no measurement.

Peaks are nominal. T4: 65 TFLOP/s in float16 with float32 sums, 320 GB/s (data sheet). RTX 3070: half of 46
multiprocessors * 4 tensor cores * 256 FLOP * 1.725 GHz = 81.3 TFLOP/s, because GeForce cards halve the rate with
float32 sums (GA102 white paper v2, appendix A), 448 GB/s. H200: 989 TFLOP/s dense, 4.8 TB/s (data sheet; 788 TFLOP/s
and 4.3 TB/s have been measured). Shared memory of a block: CUDA programming guide, technical specifications per compute
capability. A kernel in a CUDA graph costs some 1.3 us even if it does nothing ("No bubbles", Hazy Research, 2025, on an
H100); a barrier of all blocks is taken for 1 us.
"""

from __future__ import annotations

from dataclasses import dataclass

LAUNCH_SECONDS = 1.3e-6
BARRIER_SECONDS = 1.0e-6


@dataclass(frozen=True)
class Device:
    """A GPU: its machine code, the level of kernels it runs, and its limits (per second; bytes of a block)."""

    name: str
    arch: str
    level: int
    multiprocessors: int
    shared_limit: int
    flops: float
    bandwidth: float


DEVICES = (
    Device("T4", "75", 75, 40, 64 * 1024, 65e12, 320e9),
    Device("RTX 3070", "86", 80, 46, 99 * 1024, 40.6e12, 448e9),
    Device("H200", "90", 90, 132, 227 * 1024, 989e12, 4.8e12),
)
SHARED_LIMITS = {device.arch: device.shared_limit for device in DEVICES} | {"90a": DEVICES[-1].shared_limit}


@dataclass(frozen=True)
class Work:
    """FLOPs in products, and bytes that must come from memory or go there if no cache helps."""

    flops: int
    bytes: int

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, device: Device, blocks: int | None = None) -> float:
        """The longer of computing and fetching; with fewer ``blocks`` than multiprocessors, some of these idle."""
        busy = 1.0 if blocks is None else min(1.0, blocks / device.multiprocessors)
        return max(self.flops / (device.flops * busy), self.bytes / device.bandwidth)

    def bound(self, device: Device, launches: int = 1, blocks: int | None = None) -> str:
        """What takes longest: ``compute``, ``memory`` or ``launch``."""
        if self.seconds(device, blocks) < launches * LAUNCH_SECONDS:
            return "launch"
        return "compute" if self.seconds(device, blocks) > self.bytes / device.bandwidth else "memory"

    def predicted(self, device: Device, launches: int = 1, blocks: int | None = None) -> float:
        """Seconds in a CUDA graph."""
        return max(self.seconds(device, blocks), launches * LAUNCH_SECONDS)
