"""What is timed is what users run, not the portable backend that a circuit was trained on, and nobody is in the way."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import lab as lab_module
from experiments import timing
from experiments.lab import Lab
from experiments.sizes import SIZES
from tests.experiments.tiny import TINY
from vitsparse import Ablation, Circuit, sparsify


def circuit_of(lab, **more):
    dense = lab.new_model()
    graph = lab.graph(dense)
    return sparsify(dense, Circuit.full(graph), ablation=Ablation.zero(dense, graph=graph), **more)


def test_a_circuit_saved_on_the_portable_backend_is_timed_on_the_devices_own(tmp_path, monkeypatch):
    lab = Lab(SIZES["small"].shrunk(), None, tmp_path, "cpu")
    sparse = circuit_of(lab, backend="torch")
    lab_module.save(sparse, tmp_path / "cell")
    monkeypatch.setattr(lab_module.timing, "latency", lambda model, *rest: model.chosen_backend)
    assert sparse.chosen_backend == "torch"
    assert lab.time(tmp_path / "cell") == "cpu"


@pytest.fixture
def rounds(monkeypatch):
    """What :func:`measure_rounds` was asked for; the times are invented."""
    asked = {}
    milliseconds = {"dense eager": [3, 3], "dense other": [2, 5], "model eager": [1, 2], "model other": [4, 4],
                    "model cpu": [1, 1], "uncut cpu": [2, 2]}

    def measure(functions, **settings):
        asked.update(settings, names=list(functions))
        return {name: np.array(milliseconds[name], dtype=float) for name in functions}

    monkeypatch.setattr(timing, "CPU_RUNTIMES", ("eager", "other"))
    monkeypatch.setattr(timing, "BASELINES", dict.fromkeys(("eager", "other"), timing.BASELINES["eager"]))
    monkeypatch.setattr(timing, "measure_rounds", measure)
    return asked


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_dense_models_have_all_runtimes_and_threads_come_to_rest(tmp_path, rounds, kind):
    lab = Lab(TINY, None, tmp_path, "cpu")
    found = timing.latency(circuit_of(lab) if kind == "sparse" else lab.new_model(), lab.new_model(),
                           lab.batches("test"), (1,), 0.0)["batches"]["1"]
    assert rounds["pause"] == timing.PAUSE
    assert rounds["names"] == ["dense eager", "dense other", "uncut cpu", *(
        ["model cpu"] if kind == "sparse" else ["model eager", "model other"])]
    assert (found["strongest"], found["model"]["backend"]) == ("eager", "cpu" if kind == "sparse" else "eager")
    assert found["speedup"]["p50"] == (3.0 if kind == "sparse" else 2.25)
    assert found["uncut"]["speedup"]["p50"] == (2.0 if kind == "sparse" else 1.5)
    assert set(found["dense"]) == {"eager", "other"}
