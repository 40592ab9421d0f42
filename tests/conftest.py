"""Shared fixtures and settings: deterministic, offline, and the same on every machine."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

# The models here are so small that handing work to a second thread costs more than it saves; child processes, whose
# results are compared bit by bit, inherit it. Tests of threading ask for more themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

from tests.two_ranks import Launcher, launcher
from vitsparse.backends import native

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

# A bare machine with a GPU can run `pytest -m gpu` without what only these need.
NEEDED = {"tyro": "cli", "pydantic": "cli", "torchvision": "data/test_corruption.py",
          "matplotlib": "report/test_figures.py"}
MISSING = {package: part for package, part in NEEDED.items() if importlib.util.find_spec(package) is None}
collect_ignore = sorted(set(MISSING.values()))

# The same examples on every run; the time of one example says nothing on a shared machine.
hypothesis.settings.register_profile(
    "vitsparse", deadline=None, derandomize=True, database=None, print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("vitsparse")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Launcher]:
    """``two_ranks("module:function", *arguments)``: what the function returns in each of two connected processes."""
    with launcher() as launch:
        yield launch


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root; skips where the tests run without the sources."""
    if not (ROOT / "CMakeLists.txt").is_file():
        pytest.skip("the source tree is not here")
    return ROOT


@pytest.fixture(scope="session")
def tiny_imagenet_folder() -> Path:
    """Real images: the folder of parquet shards beside the checkout; skips where it is absent."""
    folder = SHARED_DATA / "tiny-imagenet"
    if not folder.is_dir():
        pytest.skip(f"real images are not here: {folder}")
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-gpu", action="store_true",
                     help="with `-m gpu`: when all pass, write kernels/verified_on_gpu.json")


def pytest_report_header() -> list[str]:
    return [f"not collected: tests/{part}, because {package} is not installed" for package, part in MISSING.items()]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """After a fully passed GPU run, record which sources were tested, on what, and when.

    Fully: nothing was skipped but what "this GPU" is said to be too old or too new for.
    """
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # one of several processes; the one that started them has all reports
        return
    stats = reporter.stats
    skipped = [report.longrepr[2] for report in stats.get("skipped", ()) if isinstance(report, pytest.TestReport)]
    complete = exitstatus == 0 and stats.get("passed") and all("Skipped: this GPU" in reason for reason in skipped)
    if session.config.getoption("--record-gpu") and session.config.option.markexpr == "gpu" and complete:
        levels = {value for report in stats["passed"] for name, value in report.user_properties if name == "cuda_level"}
        record = {"sources": native.build_facts()["gpu_sources"], "gpu": torch.cuda.get_device_name(),
                  "date": datetime.date.today().isoformat(), "levels": ", ".join(map(str, sorted(levels)))}
        (ROOT / "kernels/verified_on_gpu.json").write_text(json.dumps(record, indent=2) + "\n")
