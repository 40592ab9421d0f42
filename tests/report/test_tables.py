"""The Markdown table of a run."""

from __future__ import annotations

import pytest

from vitsparse.report import results_table, speed_lines


def quantiles(p50: float) -> dict[str, float]:
    return {"p20": 0.9 * p50, "p50": p50, "p80": 1.2 * p50, "n": 50}


def row(flops: int, latency_ms: dict, **changes) -> dict:
    return {"accuracy": 0.9731, "loss": 0.1234, "kl": 0.0, "edges_kept": 703, "edges": 703, "nodes_dead": 0,
            "nodes_constant": 0, "nodes": 49, "flops": flops, "latency_ms": latency_ms, **changes}


@pytest.fixture
def results() -> dict:
    dense = {"1": {"eager": quantiles(1.0), "compile": quantiles(0.8)},
             "32": {"eager": quantiles(10.0), "compile": quantiles(9.0), "openvino": quantiles(8.0)}}
    ours = {"1": {"cpu": quantiles(0.2)}, "32": {"cpu": quantiles(5.0)}}
    return {"rows": {"dense": row(10_000_000, dense),
                     "finetuned": row(6_400_000, ours, edges_kept=123, nodes_dead=7, nodes_constant=2, kl=0.0213)},
            "machine": {"cpu": "Some CPU", "cores": 2, "torch": "2.14.1", "gpu": None}}


def test_every_row_has_every_column(results):
    lines = results_table(results).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert {line.count("|") for line in table} == {10}
    assert table[0].split(" | ")[1:4] == ["accuracy", "loss", "KL to dense"]


def test_values_are_as_measured(results):
    dense, finetuned = results_table(results).splitlines()[2:4]
    assert "97.31%" in dense
    assert "10.00 (100%)" in dense
    assert "eager 1 [0.9, 1.2]<br>compile 0.8 [0.72, 0.96]" in dense
    for cell in ("0.0213", "123 of 703", "7 / 2 of 49", "6.40 (64%)", "cpu 0.2 [0.18, 0.24]", "cpu 5 [4.5, 6]"):
        assert f"| {cell} |" in finetuned
    assert "Measured in one run on: Some CPU, cores 2, torch 2.14.1." in results_table(results)


def test_speed_is_against_the_strongest_baseline_of_each_batch_size(results):
    assert speed_lines(results) == [
        "- finetuned, batch 1: 4.00 times as fast (cpu) as the strongest dense baseline (compile).",
        "- finetuned, batch 32: 1.60 times as fast (cpu) as the strongest dense baseline (openvino).",
    ]


def test_what_was_not_measured_is_a_dash(results):
    results["rows"]["finetuned"].update(kl=None, latency_ms={"1": {"cpu": quantiles(0.2)}})
    line = results_table(results).splitlines()[3]
    assert "| – |" in line
    assert line.endswith("| – |")
