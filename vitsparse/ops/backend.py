"""Which implementation of an op runs: the names, the reasons against each, and the choice.

A backend asked for by name never falls back: :func:`choose` raises with every reason against it. ``"auto"`` takes the
first that can run and says so once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..backends import native, triton
from ..errors import InputError, nearest

BACKENDS = ("reference", "torch", "cpu", "cuda", "triton")
PREFERENCE = {"cpu": ("cpu", "torch", "reference"), "cuda": ("cuda", "triton", "torch", "reference")}

logger = logging.getLogger("vitsparse")
_announced: set[str] = set()


def why_not(backend: str, device: str) -> list[str]:
    """Every reason why ``backend`` cannot run on tensors of ``device`` ("cpu", "cuda"); empty when it can."""
    if backend in ("reference", "torch"):
        return []
    if backend == "triton":
        return triton.why_not(device)
    if backend not in BACKENDS:
        raise InputError("no backend has this name", where="backend", expected=", ".join(("auto", *BACKENDS)),
                         found=repr(backend), remedy=nearest(backend, ("auto", *BACKENDS)))
    wrong_device = [] if backend == device else [f"it runs on {backend} tensors and these are on {device}"]
    return wrong_device or native.why_not(backend)


def choose(wanted: str = "auto", device: str = "cpu", offered: Sequence[str] = BACKENDS) -> str:
    """The backend to run on tensors of ``device``: ``wanted``, or for ``"auto"`` the fastest that can.

    ``offered`` are the backends that implement what is to be run. Raises :class:`InputError` with all reasons when
    ``wanted`` cannot run; never replaces it by another.
    """
    if wanted != "auto":
        reasons = why_not(wanted, device)
        if wanted not in offered:
            reasons = [f"it is not implemented for this ({', '.join(offered)} are)", *reasons]
        if reasons:
            raise InputError(f"backend {wanted!r} cannot run here", where="backend", found="; ".join(reasons),
                             remedy="mend that, or ask for 'auto', or see `vitsparse doctor`")
        return wanted
    skipped = {}
    for backend in PREFERENCE.get(device, ("torch", "reference")):
        skipped[backend] = why_not(backend, device) if backend in offered else ["it does not implement this"]
        if not skipped[backend]:
            _announce(backend, device, skipped)
            return backend
    raise InputError("no backend can run this", where=f"device {device}",
                     found="; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in skipped.items()))


def _announce(backend: str, device: str, skipped: dict[str, list[str]]) -> None:
    """Say once what was chosen; louder when something faster was passed over."""
    passed_over = [f"{name}: {', '.join(reasons)}" for name, reasons in skipped.items() if reasons]
    message = f"backend {backend!r} for {device} tensors" + "".join(f"; not {text}" for text in passed_over)
    if message not in _announced:
        _announced.add(message)
        logger.log(logging.WARNING if passed_over else logging.INFO, message)
