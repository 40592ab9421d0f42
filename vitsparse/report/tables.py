"""The table of a run as Markdown, from the values of ``results.json`` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def results_table(results: Mapping[str, Any]) -> str:
    """Rows of ``results["rows"]`` (name -> values, see DESIGN.md, "Files") as a Markdown table, the machine below."""
    rows = results["rows"]
    dense_flops = rows.get("dense", {}).get("flops")
    columns = [("model", "---"), ("accuracy", "--:"), ("loss", "--:"), ("KL to dense", "--:"), ("edges kept", "--:"),
               ("dead / constant nodes", "--:"), ("MFLOPs an image", "--:")]
    batches = sorted({batch for row in rows.values() for batch in row["latency_ms"]}, key=int)
    columns += [(f"latency b{batch}, ms: p50 [p20, p80]", "---") for batch in batches]
    lines = [_line(name for name, _ in columns), _line(rule for _, rule in columns)]
    lines += [_line([name, *_quality(row), _flops(row["flops"], dense_flops),
                     *(_latency(row["latency_ms"].get(batch, {})) for batch in batches)]) for name, row in rows.items()]
    return "\n".join([*lines, "", *speed_lines(results), "", _machine(results.get("machine", {}))]) + "\n"


def speed_lines(results: Mapping[str, Any]) -> list[str]:
    """For each sparse row and batch size: how many times as fast as the fastest dense baseline of the same run."""
    rows, lines = results["rows"], []
    dense = rows.get("dense", {}).get("latency_ms", {})
    for name, row in rows.items():
        for batch, measured in row["latency_ms"].items():
            baselines = {key: value["p50"] for key, value in dense.get(batch, {}).items()}
            if name == "dense" or not baselines or not measured:
                continue
            strongest = min(baselines, key=baselines.__getitem__)
            ours = min(measured, key=lambda key: measured[key]["p50"])
            ratio = baselines[strongest] / measured[ours]["p50"]
            lines.append(f"- {name}, batch {batch}: {ratio:.2f} times as fast ({ours}) as the strongest dense baseline "
                         f"({strongest}).")
    return lines


def _quality(row: Mapping[str, Any]) -> list[str]:
    kl = "–" if row["kl"] is None else f"{row['kl']:.4f}"
    return [f"{row['accuracy']:.2%}", f"{row['loss']:.4f}", kl, f"{row['edges_kept']:,}" + _of(row.get("edges")),
            f"{row['nodes_dead']} / {row['nodes_constant']}" + _of(row.get("nodes"))]


def _of(total: int | None) -> str:
    return "" if total is None else f" of {total:,}"


def _flops(flops: float, dense: float | None) -> str:
    share = f" ({flops / dense:.0%})" if dense else ""
    return f"{flops / 1e6:.2f}{share}"


def _latency(measured: Mapping[str, Mapping[str, float]]) -> str:
    cells = [f"{backend} {_ms(t['p50'])} [{_ms(t['p20'])}, {_ms(t['p80'])}]" for backend, t in measured.items()]
    return "<br>".join(cells) or "–"


def _ms(milliseconds: float) -> str:
    """Three significant digits."""
    return f"{milliseconds:.3g}" if milliseconds < 1000 else f"{milliseconds:.0f}"


def _machine(facts: Mapping[str, Any]) -> str:
    names = {"gpu": "", "cpu": "", "cores": "cores ", "threads": "threads ", "torch": "torch ",
             "vitsparse": "vitsparse ", "commit": "commit ", "date": ""}
    known = [f"{label}{facts[key]}" for key, label in names.items() if facts.get(key) is not None]
    return f"Measured in one run on: {', '.join(known)}." if known else ""


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
