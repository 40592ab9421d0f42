"""Metrics against torch's own and against cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vitsparse.errors import InputError
from vitsparse.evaluation.batches import OnlyClasses
from vitsparse.evaluation.metrics import METRICS, accuracy, cross_entropy, kl, logit_difference, metric_named


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits, dense = (4 * torch.randn(9, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return logits, torch.randint(0, 5, (9,), generator=generator), dense


def test_cross_entropy_and_kl_are_torchs(batch):
    logits, labels, dense = batch
    torch.testing.assert_close(cross_entropy(logits, labels), F.cross_entropy(logits, labels))
    expected = F.kl_div(F.log_softmax(logits, -1), F.log_softmax(dense, -1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(kl(logits, dense), expected)


def test_kl_by_hand():
    """KL((1/2, 1/2) || (1/4, 3/4)) = log 2 - log(3) / 2; the other way round it is another number."""
    half, quarter = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    assert float(kl(quarter, half)) == pytest.approx(math.log(2) - math.log(3) / 2)
    assert float(kl(half, quarter)) == pytest.approx(0.75 * math.log(3) - math.log(2))


def test_kl_is_zero_for_equal_models_whatever_the_offset(batch):
    logits, _, _ = batch
    assert kl(logits, logits) == 0
    assert float(kl(logits, logits + 7)) == pytest.approx(0, abs=1e-14)


def test_kl_is_finite_where_a_probability_underflows():
    far = torch.tensor([[0.0, -200.0]])
    assert kl(far, far) == 0
    assert float(kl(far, -far)) == pytest.approx(200)


def test_gradient_of_kl_vanishes_at_the_dense_model(batch):
    logits, _, dense = batch
    for start, zero in ((dense, True), (logits, False)):
        start = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(kl(start, dense), start)
        assert (float(gradient.abs().max()) < 1e-15) == zero


def test_accuracy_and_logit_difference_by_hand():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    assert accuracy(logits, torch.tensor([0, 1, 0, 2])) == 0.5
    assert logit_difference(logits, 0, 2) == pytest.approx((1 - 1 - 1 + 0) / 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_not_rounded_again(batch, dtype):
    logits, labels, dense = batch
    logits, dense = logits.to(dtype), dense.to(dtype)
    for value, exact in ((cross_entropy(logits, labels), cross_entropy(logits.double(), labels)),
                         (kl(logits, dense), kl(logits.double(), dense.double()))):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)


def test_table_gives_the_functions(batch):
    logits, labels, dense = batch
    assert METRICS["ce"](logits, labels, dense) == cross_entropy(logits, labels)
    assert METRICS["kl"](logits, labels, dense) == kl(logits, dense)
    assert metric_named("accuracy")(logits, labels, dense) == accuracy(logits, labels)
    with pytest.raises(InputError, match=r"found: 'kll'\n  remedy: did you mean 'kl'"):
        metric_named("kll")


def test_logit_differences_grow_as_a_model_gets_worse():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]])
    labels = torch.tensor([0, 1])
    assert metric_named("logit_difference:0:2")(logits, None, logits) == pytest.approx(-(1 - 1) / 2)
    assert metric_named("logit_difference")(logits, labels, logits) == pytest.approx(-(1 + 4) / 2)
    dense = torch.tensor([[3.0, 2.0, 1.0], [2.0, 5.0, 1.0]])  # it is the dense model that names the rivals
    assert metric_named("logit_difference")(logits, labels, dense) == pytest.approx(-(2 + 5) / 2)


def test_a_metric_among_classes_is_that_of_a_model_without_the_others(batch):
    logits, labels, dense = batch
    chosen = torch.isin(labels, torch.tensor([1, 3, 4]))
    logits, labels, dense = logits[chosen], labels[chosen], dense[chosen]
    renamed = torch.tensor([{1: 0, 3: 1, 4: 2}[int(label)] for label in labels])
    for name in ("ce", "kl", "logit_difference", "accuracy"):
        expected = metric_named(name)(logits[:, [1, 3, 4]], renamed, dense[:, [1, 3, 4]])
        assert metric_named(name).among([4, 1, 3])(logits, labels, dense) == expected


@pytest.mark.parametrize("classes", [[], [1], [1, 1], [-1, 2], [1, 9]])
def test_a_metric_among_impossible_classes_is_refused(batch, classes):
    with pytest.raises(InputError, match="class"):
        metric_named("kl").among(classes)(*batch)


@pytest.mark.parametrize("name", [
    "logit_difference:1:1", "logit_difference:0:9", "logit_difference:0", "logit_difference:a:b"])
def test_a_logit_difference_of_impossible_classes_is_refused(batch, name):
    with pytest.raises(InputError, match="metric"):
        metric_named(name)(*batch)


def test_only_the_images_of_some_classes():
    images, labels = torch.arange(6.0)[:, None], torch.tensor([0, 1, 2, 0, 1, 1])
    chosen = OnlyClasses([(images[:2], labels[:2]), (images[2:3], labels[2:3]), (images[3:], labels[3:])], [0, 1])
    for _ in range(2):  # it can be read again
        assert [batch.tolist() for _, batch in chosen] == [[0, 1], [0, 1, 1]]
        assert [batch[:, 0].tolist() for batch, _ in chosen] == [[0, 1], [3, 4, 5]]
    with pytest.raises(InputError, match="labels are needed"):
        list(OnlyClasses([(images, None)], [0]))
