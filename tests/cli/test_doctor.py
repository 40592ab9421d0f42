"""``vitsparse doctor``: a page for a person, and the same facts as JSON."""

from __future__ import annotations

import json

import pytest

from vitsparse.backends import facts
from vitsparse.cli import doctor


def test_json_is_the_facts(capsys):
    assert doctor.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(facts.collect()))


def test_text_names_backends_reasons_and_the_state_of_the_gpu_kernels(capsys):
    assert doctor.main([]) == 0
    page = capsys.readouterr().out
    found = facts.collect()
    for name, backend in found["backends"].items():
        assert f"  {name:14} {'usable' if backend['usable'] else 'not usable: '}" in page
        assert all(reason in page for reason in backend["why_not"])
    assert found["gpu_verification"]["text"] in page


def test_text_where_nothing_is_built_says_what_to_do():
    found = facts.collect()
    page = doctor.as_text({**found, "built": {}, "machine": {**found["machine"], "cpu_isa": None}})
    assert "nothing: run `pip install .`" in page
    assert "CPU kernels    not built" in page


@pytest.mark.parametrize(("code", "says"), [
    ({"cuda_level": 80, "cuda_code": "machine code"}, "8.0 GiB; level 80, machine code"),
    ({"cuda_level": None, "cuda_code": None}, "8.0 GiB; no code for it in this build"),
])
def test_text_lists_gpus_and_the_driver(code, says):
    found = facts.collect()
    gpu = {"name": "A Card", "capability": "8.6", "memory_bytes": 8 * 2**30, **code}
    page = doctor.as_text({**found, "machine": {**found["machine"], "driver_cuda": "13.0", "gpus": [gpu]}})
    assert f"A Card, compute capability 8.6, {says}" in page
    assert "driver's CUDA  13.0" in page
