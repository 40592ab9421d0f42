"""What is timed is what users run, not the portable backend that a circuit was trained on."""

from __future__ import annotations

from experiments import lab as lab_module
from experiments.lab import Lab
from experiments.sizes import SIZES
from vitsparse import Ablation, Circuit, sparsify


def test_a_circuit_saved_on_the_portable_backend_is_timed_on_the_devices_own(tmp_path, monkeypatch):
    lab = Lab(SIZES["small"].shrunk(), None, tmp_path, "cpu")
    dense = lab.new_model()
    graph = lab.graph(dense)
    sparse = sparsify(dense, Circuit.full(graph), ablation=Ablation.zero(dense, graph=graph), backend="torch")
    lab_module.save(sparse, tmp_path / "cell")
    monkeypatch.setattr(lab_module.timing, "latency", lambda model, *rest: model.chosen_backend)
    assert sparse.chosen_backend == "torch"
    assert lab.time(tmp_path / "cell") == "cpu"
