"""One update of the weights: the objective, the optimizers, clipping, mixed precision, sums over ranks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..data.ranks import Ranks
from ..errors import InputError
from ..evaluation.evaluate import device_of
from .muon import Muon
from .recipe import AmpPolicy, Recipe

_NO_DECAY = frozenset({"cls_token", "pos_embed"})


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices decay; biases, norm and scale vectors, ``cls_token`` and ``pos_embed`` do not.

    Frozen parameters are left out.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise InputError("the model has no parameter to train", where=type(model).__name__)
    decayed = [p for name, p in trained if p.ndim > 1 and name.rpartition(".")[2] not in _NO_DECAY]
    ids = {id(p) for p in decayed}
    plain = [p for _, p in trained if id(p) not in ids]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def optimizers(model: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    """Those that between them update all of ``model``: AdamW, and before it Muon if the recipe says so.

    On CUDA nothing in a step waits for the host: the learning rate and the step counts lie on the device, and AdamW is
    one kernel.
    """
    groups, device = parameter_groups(model, recipe.weight_decay), device_of(model)
    on_cuda = device.type == "cuda"
    lr = torch.tensor(recipe.lr, dtype=torch.float32, device=device) if on_cuda else recipe.lr
    adamw = functools.partial(torch.optim.AdamW, lr=lr, betas=recipe.betas, eps=recipe.eps, fused=on_cuda or None,
                              capturable=on_cuda)
    if recipe.optimizer == "adamw":
        return (adamw(groups),)
    hidden = {id(p) for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    matrices = [p for group in groups for p in group["params"] if id(p) in hidden]
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in hidden]
    rest = [group for group in groups if group["params"]]
    muon = [Muon(matrices, lr=lr, weight_decay=recipe.weight_decay)] if matrices else []
    return (*muon, *([adamw(rest)] if rest else []))


def soft_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over images of ``-sum_k t_k log p_k``; ``logits`` and ``targets`` [B, K], rows of ``targets`` sum to 1."""
    targets = targets * (1 - label_smoothing) + label_smoothing / targets.shape[-1]
    return -(targets * _log_softmax(logits)).sum(-1).mean()


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(teacher_T || model_T)``, mean over images (Hinton, Vinyals and Dean 2015, section 2).

    The factor keeps the size of the gradient independent of the temperature.
    """
    student, teacher = _log_softmax(logits / temperature), _log_softmax(teacher_logits / temperature)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(-1).mean()


def objective(recipe: Recipe, logits: Tensor, targets: Tensor, teacher_logits: Tensor | None) -> Tensor:
    """The training loss of a batch, a scalar in fp32 or better."""
    loss = soft_cross_entropy(logits, targets, recipe.label_smoothing)
    if teacher_logits is None:
        return loss
    weight = recipe.distill_weight
    return (1 - weight) * loss + weight * distillation(logits, teacher_logits, recipe.temperature)


@dataclass(frozen=True)
class Updater:
    """The two halves of a training step. They are apart so that gradients can be looked at between them.

    It holds what changes the weights and nothing about epochs, files or progress. Several ``ranks`` with a part of the
    batch each make the update that one process makes with the whole of it.
    """

    model: nn.Module
    recipe: Recipe
    policy: AmpPolicy
    teacher: nn.Module | None
    optimizers: tuple[torch.optim.Optimizer, ...]
    scaler: torch.amp.GradScaler
    ranks: Ranks

    @classmethod
    def create(cls, model: nn.Module, recipe: Recipe, policy: AmpPolicy, teacher: nn.Module | None,
               ranks: Ranks) -> Updater:
        scaler = torch.amp.GradScaler("cuda", enabled=policy.scale_loss)
        return cls(model, recipe, policy, teacher, optimizers(model, recipe), scaler, ranks)

    def backward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Fill the gradients of one batch; returns (loss, right answers, images, gradient norm) as one tensor [4].

        ``images`` [B, C, H, W] and ``targets`` [B, K] are this rank's, what is returned is of the whole batch and on
        the device. An answer is right when its class is the target's largest.
        """
        with self._precision(images.device.type):
            logits = self.model(images)
            if logits.shape != targets.shape:
                raise InputError("the stream's targets do not fit the model's logits", where="training stream",
                                 expected=f"targets {list(logits.shape)}", found=f"targets {list(targets.shape)}")
            loss = objective(self.recipe, logits, targets, self._teacher_logits(images))
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        right = (logits.argmax(-1) == targets.argmax(-1)).sum()
        facts = torch.stack([loss.detach(), right.to(loss.dtype), torch.full_like(loss, len(images))])
        if self.ranks.world > 1:
            self._over_all_ranks(gradients, facts)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.get_total_norm(gradients)
        return torch.cat([facts, norm.to(facts.dtype)[None]])

    def update(self, lr: float, norm: Tensor) -> None:
        """Clip the gradients of total norm ``norm`` and step; a step whose fp16 gradients overflowed is skipped."""
        self.set_rate(lr)
        self.step(norm)

    def set_rate(self, lr: float) -> None:
        """The learning rate of the steps from here on; on CUDA in place, so that a recorded step sees it."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr

    def step(self, norm: Tensor) -> None:
        """:meth:`update` at the learning rate that is set."""
        if self.recipe.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.recipe.clip_grad, norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()

    @contextlib.contextmanager
    def _precision(self, device_type: str) -> Iterator[None]:
        """Autocast where the policy has a dtype.

        On CPUs attention then runs as plain products: the backward of torch's fused one takes five times as long in
        bfloat16 (2.14; 128 images, 4 heads of 65 x 32: 40 against 8 ms).
        """
        with contextlib.ExitStack() as stack:
            if self.policy.dtype is not None:
                stack.enter_context(torch.autocast(device_type, self.policy.dtype))
                if device_type == "cpu":
                    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    @torch.no_grad()
    def _over_all_ranks(self, gradients: list[Tensor], facts: Tensor) -> None:
        """Make ``gradients`` and ``facts`` (mean loss, right answers, images) of this rank's part those of the batch.

        In place, and in one message. Means are weighted by images: the parts may differ in size.
        """
        means = [*gradients, facts[:1]]
        flat = torch.cat([*(mean.reshape(-1) * facts[2] for mean in means), facts[1:]])
        *sums, counts = self.ranks.sum(flat).split([*map(torch.numel, means), 2])
        facts[1:] = counts
        for mean, total in zip(means, sums, strict=True):
            mean.copy_(total.view_as(mean) / facts[2])

    @torch.no_grad()
    def _teacher_logits(self, images: Tensor) -> Tensor | None:
        return None if self.teacher is None else self.teacher(images)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
