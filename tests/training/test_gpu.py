"""Mixed precision on a real GPU: both policies learn, overflow is skipped and counted, resume restores the scaler."""

from __future__ import annotations

import pytest
import torch

from vitsparse.errors import InputError
from vitsparse.training import fit
from vitsparse.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("amp", ["off", "fp16", "bf16", "auto"])
def test_every_precision_learns(make_vit, make_recipe, stream, tmp_path, amp):
    if amp == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bf16")
    model = make_vit().cuda()
    history = fit(model, stream, make_recipe(epochs=12, lr=1e-2, amp=amp), out=tmp_path,
                  val_batches=stream.labelled(99))
    assert history.epochs[-1].val_accuracy > 0.9
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_steps_that_overflow_fp16_are_skipped_and_counted(make_vit, make_recipe, stream, tmp_path):
    model = make_vit().cuda()
    calls = iter(range(10**6))
    model.head.weight.register_hook(lambda grad: grad * torch.inf if next(calls) in (4, 8) else grad)
    recipe = make_recipe(amp="fp16")
    history = fit(model, stream, recipe, out=tmp_path)
    assert sum(row.skipped for row in history.epochs) >= 2
    assert {4, 8}.isdisjoint(row.step for row in history.gradients)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    saved = load_checkpoint(tmp_path / "checkpoint").state["scaler"]
    assert saved["scale"] <= 2.0**16 / 4
    other = make_vit().cuda()
    assert fit(other, stream, recipe, out=tmp_path, resume=True) == history
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_without_a_scaler_an_overflow_stops_training(make_vit, make_recipe, stream, tmp_path):
    model = make_vit().cuda()
    calls = iter(range(10**6))
    model.head.weight.register_hook(lambda grad: grad * torch.inf if next(calls) == 9 else grad)
    with pytest.raises(InputError, match=r"gradient norm is not finite\n  where: step 9"):
        fit(model, stream, make_recipe(amp="off"), out=tmp_path)
