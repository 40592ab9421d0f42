"""What a SparseViT packed or folded follows its tensors, copies are independent, and dropped parameters are gone."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch

from tests.compiler.cases import BACKENDS, Case, case_of, needs_cpu
from tests.tolerances import BACKEND, error
from vitsparse.compiler import SparseViT


def torch_logits(sparse: SparseViT, case: Case) -> torch.Tensor:
    """The logits again, from a new model on standard ops with copies of the tensors."""
    parameters = {key: value.detach().clone() for key, value in sparse.named_parameters()}
    fresh = SparseViT(sparse._front, parameters, sparse.circuit, backend="torch").eval()
    with torch.no_grad():
        return fresh(case.images)


def step(sparse, optimizer=torch.optim.SGD, **options):
    sparse(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer(sparse.parameters(), lr=0.01, **options).step()


def replace_parameter(sparse):
    sparse.head.weight = torch.nn.Parameter(torch.randn_like(sparse.head.weight))


def give_other_memory(sparse):
    sparse.head.weight.data = torch.randn_like(sparse.head.weight)


def write_uncounted(sparse):
    sparse.eval().head.weight.data.mul_(-1)
    sparse.eval()


def write_counted(sparse):
    with torch.no_grad():
        sparse.head.weight.mul_(-1)


def load(sparse, **options):
    sparse.load_state_dict({key: value * 1.5 for key, value in sparse.state_dict().items()}, **options)


CHANGES = {
    "sgd": step, "adamw": lambda sparse: step(sparse, torch.optim.AdamW),
    "foreach": lambda sparse: step(sparse, torch.optim.AdamW, foreach=True),
    "fused": lambda sparse: (step(sparse.train(), torch.optim.AdamW, fused=True), sparse.eval()),
    "load": load, "load assign": lambda sparse: load(sparse, assign=True),
    "there and back": lambda sparse: sparse.double().float(), "half": lambda sparse: sparse.half().float(),
    "replaced": replace_parameter, "other memory": give_other_memory, "uncounted": write_uncounted,
    "counted": write_counted,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["sparse", "constant"])
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_the_output_follows_the_tensors(backend, kind, change):
    case = case_of(kind)
    sparse = case.sparse(backend).eval()
    with torch.no_grad():
        before = sparse(case.images)
    CHANGES[change](sparse)
    with torch.no_grad():
        after = sparse(case.images)
        if change != "there and back":
            assert error(after, before) > 1e-6
        assert error(after, torch_logits(sparse, case)) <= BACKEND
        assert error(sparse.forward_head(sparse.forward_features(case.images)), after) <= BACKEND


@needs_cpu
def test_a_step_that_torch_does_not_count():
    """The fused AdamW of torch 2.14 leaves the version of a parameter as it is; the backward before it tells."""
    case = case_of()
    sparse = case.sparse("cpu").eval()
    step(sparse, torch.optim.AdamW, fused=True)
    with torch.no_grad():
        assert error(sparse(case.images), torch_logits(sparse, case)) <= BACKEND


def test_loading_the_state_of_another_model_of_the_same_circuit():
    one, other = case_of(seed=3), case_of(seed=4)
    other = Case(other.model, one.circuit, other.ablation, one.images)
    for backend in BACKENDS:
        sparse = one.sparse(backend)
        sparse(one.images)
        sparse.load_state_dict(other.sparse(backend).state_dict())
        with torch.no_grad():
            assert error(sparse(one.images), other.exact) <= BACKEND


def test_what_is_saved_are_the_tensors_as_they_are(tmp_path):
    sparse = case_of().sparse()
    replace_parameter(sparse)
    sparse.save_pretrained(tmp_path)
    assert torch.equal(SparseViT.from_pretrained(tmp_path).head.weight, sparse.head.weight)
    full = case_of("full").sparse()
    replace_parameter(full)
    assert torch.equal(full.to_dense().head.weight, full.head.weight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_are_independent(backend):
    case = case_of()
    sparse = case.sparse(backend)
    with torch.no_grad():
        expected = sparse(case.images)
        sparse.head.weight.mul_(2)  # not yet packed again when the copy is made
        again = copy.deepcopy(sparse)
        doubled = sparse(case.images)
        assert torch.equal(again(case.images), doubled)
        load(again)
        assert torch.equal(sparse(case.images), doubled)
        assert not torch.equal(doubled, expected)
        again = copy.deepcopy(sparse).train()
        expected = again(case.images)
        load(sparse)  # writes into its constants
        assert torch.equal(again(case.images), expected)
        doubled = sparse(case.images)
    buffer = io.BytesIO()  # users save whole modules; these bytes are our own, the package reads none
    torch.save(sparse, buffer)
    buffer.seek(0)
    with torch.no_grad():
        assert torch.equal(torch.load(buffer, weights_only=False)(case.images), doubled)


def test_circuits_and_plans_survive_pickle():
    case = case_of()
    circuit = pickle.loads(pickle.dumps(case.circuit))  # noqa: S301
    assert circuit == case.circuit
    plan = pickle.loads(pickle.dumps(case.sparse().plan))  # noqa: S301
    assert str(plan) == str(case.sparse().plan)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_mode(backend, tmp_path):
    """Made, saved, loaded and used in inference mode, trained outside of it."""
    case = case_of()
    with torch.inference_mode():
        case.sparse(backend).save_pretrained(tmp_path)
        sparse = SparseViT.from_pretrained(tmp_path)
        assert error(sparse(case.images), case.exact) <= BACKEND
        sparse.load_state_dict(sparse.state_dict())
        sparse.double().float()
    sparse.train()
    step(sparse)
    with torch.inference_mode():
        assert error(sparse.eval()(case.images), torch_logits(sparse, case)) <= BACKEND


@needs_cpu
@pytest.mark.parametrize("kind", ["sparse", "constant", "full"])
def test_inference_only(kind, tmp_path):
    case = case_of(kind, "zero")
    sparse = case.sparse("cpu", inference_only=True)
    assert not list(sparse.parameters())
    assert error(sparse(case.images), case.exact) <= BACKEND
    assert sparse.eval() is sparse.cpu() is sparse.float() is sparse
    assert error(copy.deepcopy(sparse)(case.images), case.exact) <= BACKEND
    features = torch.zeros(1, 17, 24)
    for refused in (sparse.train, sparse.double, sparse.to_dense, lambda: sparse.save_pretrained(tmp_path),
                    lambda: sparse.forward_features(case.images), lambda: sparse.forward_head(features),
                    lambda: sparse.load_state_dict(sparse.state_dict())):
        with pytest.raises(ValueError, match="inference_only"):
            refused()
    if kind != "constant":
        with pytest.raises(ValueError, match="inference_only"):
            sparse(case.images.clone().requires_grad_())
    assert not list(tmp_path.iterdir())
    assert error(sparse(case.images), case.exact) <= BACKEND
    assert "steps" in str(sparse.plan)


@needs_cpu
def test_inference_only_frees_the_parameters():
    case = case_of()
    sparse = case.sparse("cpu")
    held = weakref.ref(sparse.head.weight)
    sparse.drop_parameters()
    gc.collect()
    assert held() is None


