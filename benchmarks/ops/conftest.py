"""Rows on a GPU: timed by the GPU's own clock, and skipped with the reasons where they cannot run."""

from __future__ import annotations

import pytest

from benchmarks.ops.cuda import CudaTimer, reasons_against
from vitsparse.evaluation.gpu import gpu_facts
from vitsparse.evaluation.latency import machine_facts


def target_of(item: pytest.Item) -> tuple[str, str]:
    """(device, backend) that a benchmark is parametrized with."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("device", "cpu"), params.get("backend", "torch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "benchmark" in getattr(item, "fixturenames", ()) and target_of(item)[0] == "cuda":
            item.add_marker(pytest.mark.benchmark(timer=CudaTimer()))


@pytest.fixture(autouse=True)
def _where(request: pytest.FixtureRequest) -> None:
    """Skip what cannot run here; a row of a GPU says of which one."""
    device, backend = target_of(request.node)
    if reasons := reasons_against(device, backend):
        pytest.skip("; ".join(reasons))
    if "benchmark" in request.fixturenames and device == "cuda":
        request.getfixturevalue("benchmark").extra_info.update(machine_facts() | gpu_facts(), dtype="float16")
