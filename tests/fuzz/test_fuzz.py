"""Some thousand mutated programs and saved models; ``make fuzz`` tries 100,000."""

from __future__ import annotations

import pytest

from tests.fuzz.pool import run
from tests.ops.kernels import needs_cpu_ops


@needs_cpu_ops
@pytest.mark.parametrize(("family", "count", "outcomes"), [
    ("programs", 3000, {"refused": 1500, "ran": 100, "ran, not to be built": 10}),
    ("folders", 600, {"refused": 400, "loaded and run": 10}),
])
def test_whatever_is_damaged_is_refused_by_name_or_harmless(family, count, outcomes):
    report = run(family, range(count))
    assert not report.failures, str(report)
    assert sum(report.outcomes.values()) == count
    assert all(report.outcomes[name] >= least for name, least in outcomes.items()), str(report)


def test_crashes_bugs_and_hangs_are_noticed_with_their_seeds():
    report = run("broken", range(10), processes=2)
    assert [seed for seed, _ in report.failures] == [2, 4, 5, 7]
    texts = dict(report.failures)
    assert "exit status -9" in texts[2]
    assert "Bug: it wrote into its weights" in texts[4]
    assert "KeyError: 'any other error'" in texts[5]
    assert "Timeout" in texts[7]
    assert report.outcomes == {"kept": 6, "failed": 4}
