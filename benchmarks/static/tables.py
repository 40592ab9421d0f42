"""The tables of ``python -m benchmarks.static``, for a person to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def page(found: Mapping[str, Any]) -> str:
    """All sections of ``found``, one after the other."""
    made_by = ", ".join(f"{name} {value}" for name, value in found["made_by"].items())
    calls = [row for row in found["launches"] if row["dtype"] == "float16"]
    sections = {
        "Kernels of libvitsparse_cuda.so, as machine code": map(_kernel, found["kernels"]),
        "Triton kernels, float16": map(_triton, found["triton"]),
        "What the ops launch, float16. Predicted: the longest of products at the peak rate of the multiprocessors in\n"
        "use, bytes at the peak rate of memory, and launches": map(_call, calls),
        "Whole circuits, predicted microseconds: in a CUDA graph / in one kernel": _plans(found["plans"]),
    }
    head = f"Made by {made_by}. Nothing here was measured on a GPU: code is counted, times are predicted."
    return "\n\n".join([head, *("\n".join([title, "", *table(rows)]) for title, rows in sections.items())])


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Lines with columns of equal width: text to the left, numbers to the right."""
    rows = list(rows)
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [isinstance(value, int | float) for value in rows[0].values()]
    for line in cells:
        yield "  ".join(f"{cell:{'>' if is_right else '<'}{width}}"
                        for cell, width, is_right in zip(line, widths, right, strict=True)).rstrip()


def _text(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _kernel(row: Row) -> Row:
    return {"kernel": row["name"], "arch": row["arch"], "registers": row["registers"], "stack": row["stack"],
            "LDL+STL": row["local"], "HMMA": row["hmma"], "HGMMA": row["hgmma"], "LDGSTS": row["copies"],
            "code kB": row["code_bytes"] / 1000}


def _triton(row: Row) -> Row:
    tiles = " ".join(f"{name.partition('_')[2]}={value}" for name, value in row["tiles"].items())
    return {"op": row["op"], "case": row["case"], "arch": row["arch"], "tiles": tiles, "registers": row["registers"],
            "stack": row["stack"], "shared": row["shared"], "mma": row["products"]}


def _call(row: Row) -> Row:
    launches = row["launches"]
    return {"op": row["op"], "shape": row["shape"], "batch": row["batch"], "device": row["device"],
            "launches": len(launches), "blocks": max((launch["blocks"] for launch in launches), default=0),
            "threads": max((launch["threads"] for launch in launches), default=0),
            "shared": max((launch["shared"] for launch in launches), default=0),
            "MFLOP": row["flops"] / 1e6, "MB": row["bytes"] / 1e6, "us": row["predicted_us"], "bound": row["bound"]}


def _plans(rows: Sequence[Row]) -> Iterator[Row]:
    """A line for each circuit and target, a column for each device and batch size."""
    for circuit, target in dict.fromkeys((row["circuit"], row["target"]) for row in rows):
        mine = [row for row in rows if (row["circuit"], row["target"]) == (circuit, target)]
        times = {f"{row['device']}, batch {row['batch']}": f"{row['graph_us']:.0f} / {row['one_kernel_us']:.0f}"
                 for row in mine}
        yield {"circuit": circuit, "target": target, "steps": mine[0]["steps"], "waves": mine[0]["waves"],
               "MFLOP": mine[0]["mflop_per_image"], **times}
