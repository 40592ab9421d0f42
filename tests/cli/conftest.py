"""One finished run for all tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.tiny import EVERYTHING
from vitsparse.cli import main


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["run", "--out", str(out), *EVERYTHING]) == 0
    return out
