"""One look for every figure: colours that colour-blind readers can tell apart, thin axes, no global state.

Figures are made without pyplot, so nothing is registered, shown or leaked, and drawing works without a display.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..circuit.files import atomic_path
from ..errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, the dark half of it.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
INK, MUTED, FAINT = "#222222", "#767676", "#D4D4D4"

_RC = {
    "font.size": 9.5, "font.family": "sans-serif", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#EBEBEB", "grid.linewidth": 0.7, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "legend.frameon": False, "lines.linewidth": 1.8, "savefig.facecolor": "white",
    "svg.fonttype": "none", "svg.hashsalt": "vitsparse",
}


def require_matplotlib() -> None:
    """Raise :class:`InputError` with the remedy where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("figures need matplotlib", where="vitsparse.report", expected="matplotlib to be installed",
                         found="no such package", remedy="pip install 'vitsparse[report]'")


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """The rc settings of every figure, for the time of drawing it."""
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def new_figure(width: float, height: float, columns: int = 1, **gridspec) -> tuple[Figure, list[Axes]]:
    """A figure of ``width`` x ``height`` inches with ``columns`` axes side by side, for use in :func:`house_style`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, gridspec_kw=gridspec or None)
    return figure, list(axes[0])


def save_figure(figure: Figure, stem: str | Path, *, dpi: int = 120) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg``, atomically and without a date, so that equal figures are equal files."""
    written = []
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        path = Path(f"{stem}.{suffix}")
        with house_style(), atomic_path(path) as temporary:
            figure.savefig(temporary, format=suffix, dpi=dpi, metadata=metadata)
        written.append(path)
    return written
