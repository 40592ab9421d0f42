"""evaluate: numbers over uneven batches, modes kept, bad batches refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitsparse.errors import InputError
from vitsparse.evaluation.evaluate import Evaluation, device_of, evaluate
from vitsparse.evaluation.metrics import accuracy, cross_entropy, kl


def classifier(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 4))


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(n, 3, 2, 2, generator=generator), torch.randint(0, 4, (n,), generator=generator))
            for n in (5, 5, 1)]


def test_uneven_batches_weigh_each_image_alike(batches):
    model, dense = classifier(), classifier(1)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    found = evaluate(model, batches, dense=dense)
    with torch.no_grad():
        logits, dense_logits = model.eval()(images), dense.eval()(images)
    assert found.accuracy == pytest.approx(float(accuracy(logits, labels)))
    assert found.loss == pytest.approx(float(cross_entropy(logits, labels)))
    assert found.kl == pytest.approx(float(kl(logits, dense_logits)))
    assert found.images == 11


def test_without_a_dense_model_there_is_no_kl(batches):
    found = evaluate(classifier(), batches)
    assert found.kl is None
    assert found.as_dict() == {"accuracy": found.accuracy, "loss": found.loss, "kl": None, "images": 11}
    assert evaluate(classifier(), batches, dense=classifier()).kl == 0


def test_modes_are_kept_and_no_gradient_is_left(batches):
    model, dense = classifier(), classifier().eval()
    model[2].eval()
    evaluate(model, batches, dense=dense)
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert not any(module.training for module in dense.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_are_kept_when_the_model_fails():
    model = classifier()
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))])
    assert all(module.training for module in model.modules())


def test_a_one_shot_iterator_is_refused(batches):
    for once in (iter(batches), (pair for pair in batches)):
        with pytest.raises(InputError, match=r"list\(batches\)"):
            evaluate(classifier(), once)


@pytest.mark.parametrize("batches", [[], [(torch.zeros(0, 3, 2, 2), torch.zeros(0, dtype=torch.int64))]])
def test_no_images_are_refused(batches):
    with pytest.raises(InputError, match="no images"):
        evaluate(classifier(), batches)


@pytest.mark.parametrize("bad", [4, -1, 200])
def test_a_label_outside_the_classes_is_refused(batches, bad):
    batches[1][1][2] = bad
    with pytest.raises(InputError, match=rf"where: batch 1\n  expected: 0 to 3\n  found: {bad}\n"):
        evaluate(classifier(), batches)


@pytest.mark.parametrize(("labels", "found"), [
    (torch.zeros(3, dtype=torch.int64), r"int64 labels \[3\]"), (torch.zeros(2), r"float32 labels \[2\]"),
    (torch.zeros(2, 4, dtype=torch.int64), r"int64 labels \[2, 4\]"),
])
def test_labels_of_another_shape_or_type_are_refused(labels, found):
    with pytest.raises(InputError, match=rf"expected: int64 labels \[2\]\n  found: {found}"):
        evaluate(classifier(), [(torch.zeros(2, 3, 2, 2), labels)])


def test_a_batch_that_is_no_pair_of_tensors_is_refused(batches):
    with pytest.raises(InputError, match=r"pair of images and labels\n  where: batch 1\n[\s\S]*found: Tensor"):
        evaluate(classifier(), [batches[0], batches[1][0]])
    with pytest.raises(InputError, match=r"must be a tensor\n  where: batch 0\n[\s\S]*found: list"):
        evaluate(classifier(), [(batches[0][0], batches[0][1].tolist())])


def test_value_is_frozen_and_device_is_found():
    with pytest.raises(AttributeError):
        Evaluation(1.0, 0.0, None, 1).loss = 2.0
    assert device_of(nn.Identity()) == torch.device("cpu")
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
