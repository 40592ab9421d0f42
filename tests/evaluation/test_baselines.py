"""The dense model computes the same under every baseline."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.strategies import make_images, make_model
from vitsparse.errors import InputError
from vitsparse.evaluation.baselines import BASELINES
from vitsparse.model.config import ViTConfig

CONFIG = ViTConfig(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=16, depth=1, num_heads=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules, while torch.compile imports them
@pytest.mark.parametrize("name", BASELINES)
@torch.inference_mode()
def test_the_same_logits(name):
    if name in ("openvino", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    model, images = make_model(CONFIG), make_images(CONFIG, 2)
    found = BASELINES[name](model, images)()
    found = found if isinstance(found, torch.Tensor) else torch.from_numpy(found[0])
    torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "missing"), [("openvino", "openvino"), ("onnxruntime", "onnx")])
def test_a_missing_runtime_is_named(name, missing, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"package {missing} is not installed"):
        BASELINES[name](make_model(CONFIG), make_images(CONFIG, 1))


def test_openvino_has_as_many_threads_as_torch():
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    run = BASELINES["openvino"](make_model(CONFIG), make_images(CONFIG, 1))
    assert run.func.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()
