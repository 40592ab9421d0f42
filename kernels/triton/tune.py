"""Which tiles a kernel runs with: measured once for each device, op and rounded shape, and kept on disk.

Triton's own disk cache (``autotune(cache_results=True)``) does not do: it forgets which device it measured, stops on a
damaged file, and measures during the capture of a CUDA graph, which breaks the capture. So: the fastest is looked up
in memory, then in the file; where neither knows, it is measured, unless a graph is being captured or there is no GPU
(Triton's interpreter): then the first of the candidates, a middling one, serves, and nothing is remembered.

The file is ``triton-tune.json`` in $VITSPARSE_CACHE, else $XDG_CACHE_HOME/vitsparse, else ~/.cache/vitsparse.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.errors import OutOfResources, PTXASError

FORMAT = "vitsparse.triton-tune"
WARM_UP_MS, MEASURE_MS = 3, 15

Tiles = dict[str, int]  # keyword arguments of a launch: block sizes, num_warps, num_stages

logger = logging.getLogger("vitsparse")
_chosen: dict[tuple, Tiles] = {}
_files: dict[Path, dict[str, Tiles]] = {}  # what each file said when it was last read


def tiles(**values: int) -> Tiles:
    """One candidate."""
    return values


def near(size: int, least: int = 16) -> int:
    """``size`` rounded up, so that neighbouring shapes share a measurement: powers of 2, and 3/2 of one."""
    power = max(least, triton.next_power_of_2(size))
    return power if power <= least or size > power * 3 // 4 else power * 3 // 4


def choose(op: str, x: torch.Tensor, shape: tuple, candidates: Sequence[Any], launch: Callable[[Any], None]) -> Any:
    """The fastest of ``candidates`` for ``op`` on tensors like ``x`` with the rounded ``shape``.

    ``launch(candidate)`` runs the op, any number of times. Candidates that the device has no room for are passed over.
    """
    if len(candidates) == 1:
        return candidates[0]
    key = (op, x.device, x.dtype, shape)
    if key in _chosen:
        return _chosen[key]
    if not x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1":
        return candidates[0]
    name = _name(op, x, shape)
    known = _known().get(name)
    if known not in candidates:
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]
        known = measured(op, candidates, launch)
        _remember(name, known)
    _chosen[key] = known
    return known


def measured(op: str, candidates: Sequence[Any], launch: Callable[[Any], None]) -> Any:
    """The candidate whose launch takes least. Raises RuntimeError where none can be launched."""
    times = []
    for candidate in candidates:
        with suppress(OutOfResources, PTXASError):
            times.append((_milliseconds(functools.partial(launch, candidate)), candidate))
    if not times:
        raise RuntimeError(f"none of the {len(candidates)} tilings of the Triton kernel of {op} fits on this device; "
                           "use the cuda or the torch backend")
    return min(times, key=lambda pair: pair[0])[1]


def _milliseconds(run: Callable[[], None]) -> float:
    from triton.testing import do_bench

    return do_bench(run, warmup=WARM_UP_MS, rep=MEASURE_MS, return_mode="median")


def path() -> Path:
    """Where measurements are kept."""
    if own := os.environ.get("VITSPARSE_CACHE"):
        return Path(own) / "triton-tune.json"
    general = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(general) / "vitsparse" / "triton-tune.json"


@functools.cache
def _sources() -> str:
    """A digest of the kernels: a measurement of other code says nothing."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _name(op: str, x: torch.Tensor, shape: tuple) -> str:
    device = torch.cuda.get_device_name(x.device)
    return json.dumps([op, device, triton.__version__, _sources(), str(x.dtype), *map(str, shape)])


def _known() -> dict[str, Tiles]:
    """What the file says; read once."""
    if path() not in _files:
        _files[path()] = read(path())
    return _files[path()]


def read(file: Path) -> dict[str, Tiles]:
    """The measurements in ``file``: name -> tiles. A missing file holds none; so does a damaged one, with a warning."""
    try:
        content = json.loads(file.read_text())
        if content["format"] != FORMAT or not isinstance(content["fastest"], dict):
            raise ValueError("it is no file of measurements")
        return content["fastest"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s: %s): the Triton kernels are measured anew", file,
                       type(error).__name__, error)
        return {}


def _remember(name: str, fastest: Tiles) -> None:
    """Add a measurement to the file; where that is not possible, only this process remembers."""
    _known()[name] = fastest
    try:
        _files[path()] = add(path(), {name: fastest})
    except OSError as error:
        logger.warning("the measurements of the Triton kernels are not kept: %s", error)


def add(file: Path, fastest: dict[str, Tiles]) -> dict[str, Tiles]:
    """Merge ``fastest`` into ``file``, return all of it. Others may do the same meanwhile; readers see whole files."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file.with_suffix(".lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        merged = {**read(file), **fastest}
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".part")
        try:
            with open(handle, "w") as out:
                json.dump({"format": FORMAT, "version": 1, "fastest": merged}, out, indent=1)
            os.replace(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
    return merged
