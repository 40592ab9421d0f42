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
@pytest.mark.parametrize("name", ["eager", "compile", "openvino"])
@torch.inference_mode()
def test_the_same_logits(name):
    if name == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model, images = make_model(CONFIG), make_images(CONFIG, 2)
    found = BASELINES[name](model, images)()
    found = found if isinstance(found, torch.Tensor) else torch.from_numpy(found[0])
    torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-5)


def test_a_missing_openvino_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="OpenVINO is not installed"):
        BASELINES["openvino"](make_model(CONFIG), make_images(CONFIG, 1))
