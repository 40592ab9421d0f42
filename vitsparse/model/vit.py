"""The dense Vision Transformer: timm's arguments, keys and initialisation, with named intermediates instead of hooks.

Pre-norm ViT of Dosovitskiy et al., "An Image is Worth 16x16 Words" (2020). With the residual stream x [B, T, D]:

    x = [class token; patches] + position;   x = x + attn(norm1(x));   x = x + mlp(norm2(x));   head(norm(x)[:, 0])

``forward(images, intermediates=names)`` returns what was asked for by name. B images, T tokens (class token first),
D width, H heads of width d:

    embed                                          [B, T, D]      patches + class token + position
    blocks.{l}.resid_pre | resid_mid | resid_post  [B, T, D]      residual stream before, between, after the sub-blocks
    blocks.{l}.attn.q | k | v | z                  [B, T, H, d]   z: values mixed by the pattern, before the projection
    blocks.{l}.attn.pattern                        [B, H, T, T]   softmax over the last axis (keys)
    blocks.{l}.attn.out,  blocks.{l}.mlp.out       [B, T, D]      what is added to the stream (LayerScale included)
    blocks.{l}.mlp.hidden                          [B, T, M]      hidden units after GELU
    resid_final                                    [B, T, D]      the stream that the final norm reads
    pre_logits                                     [B, D]         what the classifier reads
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError, nearest
from .config import ViTConfig

Notes = dict[str, Tensor | None]

_BLOCK_PARTS = ("resid_pre", "attn.q", "attn.k", "attn.v", "attn.pattern", "attn.z", "attn.out", "resid_mid",
                "mlp.hidden", "mlp.out", "resid_post")


def _note(notes: Notes, name: str, value: Tensor) -> Tensor:
    """Keep ``value`` if somebody asked for it: ``notes`` starts with the wanted names as keys."""
    if name in notes:
        notes[name] = value
    return value


class PatchEmbed(nn.Module):
    """Images [B, C, S, S] to patch vectors [B, N, D]; refuses images of another shape."""

    def __init__(self, config: ViTConfig, **factory):
        super().__init__()
        self.shape = (config.in_chans, config.img_size, config.img_size)
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, config.patch_size, config.patch_size, **factory)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or tuple(images.shape[1:]) != self.shape or not images.is_floating_point():
            raise InputError("the images do not fit the model", where="images",
                             expected=f"a float tensor [B, {', '.join(map(str, self.shape))}]",
                             found=f"{images.dtype} {list(images.shape)}")
        return self.proj(images).flatten(2).transpose(1, 2)


class LayerScale(nn.Module):
    """One learned factor per channel on what a sub-block adds (Touvron et al. 2021, equation 4)."""

    def __init__(self, config: ViTConfig, **factory):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((config.embed_dim,), float(config.init_values), **factory))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drops a sub-block's output for whole images."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


class Attention(nn.Module):
    """Multi-head self-attention. Rows of ``qkv.weight`` are laid out (3, H, d)."""

    def __init__(self, config: ViTConfig, **factory):
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim, bias=config.qkv_bias, **factory)
        self.attn_drop = nn.Dropout(config.attn_drop_rate)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim, **factory)
        self.proj_drop = nn.Dropout(config.proj_drop_rate)

    def forward(self, x: Tensor, notes: Notes, at: str) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.num_heads).unbind(0)
        if f"{at}.pattern" in notes:
            pattern = _note(notes, f"{at}.pattern", (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))
            z = self.attn_drop(pattern) @ v
        else:
            z = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        for name, heads in (("q", q), ("k", k), ("v", v), ("z", z)):
            _note(notes, f"{at}.{name}", heads.transpose(1, 2))
        return self.proj_drop(self.proj(rearrange(z, "b h t d -> b t (h d)")))


class Mlp(nn.Module):
    """Two linear maps with the exact (erf) GELU between."""

    def __init__(self, config: ViTConfig, **factory):
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.mlp_hidden, **factory)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(config.proj_drop_rate)
        self.fc2 = nn.Linear(config.mlp_hidden, config.embed_dim, **factory)
        self.drop2 = nn.Dropout(config.proj_drop_rate)

    def forward(self, x: Tensor, notes: Notes, at: str) -> Tensor:
        hidden = _note(notes, f"{at}.hidden", self.act(self.fc1(x)))
        return self.drop2(self.fc2(self.drop1(hidden)))


class Block(nn.Module):
    """Attention, then MLP, each behind a LayerNorm and added to the residual stream."""

    def __init__(self, config: ViTConfig, drop_path: float, **factory):
        super().__init__()
        norm = {"eps": config.norm_eps, **factory}
        self.norm1 = nn.LayerNorm(config.embed_dim, **norm)
        self.attn = Attention(config, **factory)
        self.ls1 = LayerScale(config, **factory) if config.init_values else nn.Identity()
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(config.embed_dim, **norm)
        self.mlp = Mlp(config, **factory)
        self.ls2 = LayerScale(config, **factory) if config.init_values else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, notes: Notes, at: str) -> Tensor:
        _note(notes, f"{at}.resid_pre", x)
        attention = self.drop_path1(self.ls1(self.attn(self.norm1(x), notes, f"{at}.attn")))
        x = _note(notes, f"{at}.resid_mid", x + _note(notes, f"{at}.attn.out", attention))
        mlp = self.drop_path2(self.ls2(self.mlp(self.norm2(x), notes, f"{at}.mlp")))
        return _note(notes, f"{at}.resid_post", x + _note(notes, f"{at}.mlp.out", mlp))


class ViT(nn.Module):
    """Vision Transformer; the keyword arguments are the fields of :class:`ViTConfig`, ``device`` and ``dtype``.

    Its ``state_dict`` has timm's keys and shapes. Raises :class:`InputError` for unknown or invalid arguments and for
    images of another shape than ``[B, in_chans, img_size, img_size]``.
    """

    num_prefix_tokens = 1

    def __init__(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None, **arguments):
        super().__init__()
        config = self.config = ViTConfig.from_dict(arguments, where="ViT")
        factory = {"device": device, "dtype": dtype}
        self.embed_dim = self.num_features = config.embed_dim
        self.depth, self.num_heads = config.depth, config.num_heads
        self.grad_checkpointing = False

        self.patch_embed = PatchEmbed(config, **factory)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.embed_dim, **factory))
        self.pos_embed = nn.Parameter(torch.empty(1, config.num_tokens, config.embed_dim, **factory))
        self.pos_drop = nn.Dropout(config.pos_drop_rate)
        rates = [config.drop_path_rate * layer / max(config.depth - 1, 1) for layer in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate, **factory) for rate in rates)
        norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps, **factory)
        self.norm, self.fc_norm = (norm, nn.Identity()) if config.global_pool == "token" else (nn.Identity(), norm)
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = _classifier(config, **factory)
        self._init_weights()

    def _init_weights(self) -> None:
        """timm's default: the patch projection keeps torch's own, everything else is drawn here."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def global_pool(self) -> str:
        return self.config.global_pool

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, C, S, S] to the first residual stream [B, T, D]."""
        patches = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return self.pos_drop(tokens + self.pos_embed)

    def _residual(self, images: Tensor, notes: Notes) -> Tensor:
        x = _note(notes, "embed", self.embed(images))
        for layer, block in enumerate(self.blocks):
            # Recomputing a block saves nothing when its parts are kept anyway.
            if self.grad_checkpointing and self.training and not notes:
                x = checkpoint(block, x, notes, f"blocks.{layer}", use_reentrant=False)
            else:
                x = block(x, notes, f"blocks.{layer}")
        return _note(notes, "resid_final", x)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, C, S, S] to tokens [B, T, D] after the final norm (before it for ``"avg"``, as in timm)."""
        return self.norm(self._residual(images, {}))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, T, D] to logits [B, num_classes], or to what the classifier reads [B, D]."""
        x = x[:, 0] if self.global_pool == "token" else x[:, self.num_prefix_tokens:].mean(dim=1)
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, images: Tensor,
                intermediates: Iterable[str] | None = None) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Images [B, C, S, S] to logits [B, num_classes]; with ``intermediates``, also the named tensors.

        Raises :class:`InputError` for an unknown name (:meth:`intermediate_names` lists them).
        """
        notes: Notes = {} if intermediates is None else self._wanted(intermediates)
        x = self.forward_head(self.norm(self._residual(images, notes)), pre_logits=True)
        logits = self.head(_note(notes, "pre_logits", x))
        return logits if intermediates is None else (logits, notes)

    def intermediate_names(self) -> tuple[str, ...]:
        """Every name that ``forward(images, intermediates=...)`` knows."""
        blocks = [f"blocks.{layer}.{part}" for layer in range(self.depth) for part in _BLOCK_PARTS]
        return ("embed", *blocks, "resid_final", "pre_logits")

    def _wanted(self, names: Iterable[str]) -> Notes:
        names, known = [names] if isinstance(names, str) else list(names), self.intermediate_names()
        for name in names:
            if name not in known:
                raise InputError(f"the model has no intermediate {name!r}", where="intermediates", found=name,
                                 expected="a name from model.intermediate_names()", remedy=nearest(name, known))
        return dict.fromkeys(names)

    def forward_intermediates(self, x: Tensor, indices: int | Iterable[int] | None = None, *,
                              return_prefix_tokens: bool = False, norm: bool = False, output_fmt: str = "NCHW",
                              intermediates_only: bool = False):
        """Outputs of blocks in timm's form: ``(features, [per block])``, or the list alone.

        ``indices``: the last n blocks (int), those listed, or all. Each output is [B, D, S/P, S/P] (``"NCHW"``) or
        [B, N, D] (``"NLC"``), class token apart: with ``return_prefix_tokens`` a pair (patches, class token [B, 1, D]).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise InputError("unknown output format", where="output_fmt", expected="'NCHW' or 'NLC'", found=output_fmt)
        notes: Notes = {f"blocks.{layer}.resid_post": None for layer in self._layers(indices)}
        features = self.norm(self._residual(x, notes))
        outputs = []
        for tokens in notes.values():
            tokens = self.norm(tokens) if norm else tokens
            prefix, patches = tokens.split([self.num_prefix_tokens, self.config.num_patches], dim=1)
            if output_fmt == "NCHW":
                patches = rearrange(patches, "b (h w) d -> b d h w", h=self.config.img_size // self.config.patch_size)
            outputs.append((patches, prefix) if return_prefix_tokens else patches)
        return outputs if intermediates_only else (features, outputs)

    def get_intermediate_layers(self, x: Tensor, n: int | Iterable[int] = 1, *, reshape: bool = False,
                                return_prefix_tokens: bool = False, norm: bool = False):
        """DINO's form of :meth:`forward_intermediates`: the list alone, ``reshape`` for [B, D, S/P, S/P]."""
        return self.forward_intermediates(x, n, return_prefix_tokens=return_prefix_tokens, norm=norm,
                                          output_fmt="NCHW" if reshape else "NLC", intermediates_only=True)

    def _layers(self, indices: int | Iterable[int] | None) -> list[int]:
        if indices is None or isinstance(indices, int):
            count = self.depth if indices is None else indices
            valid, layers = 0 < count <= self.depth, range(self.depth - count, self.depth)
        else:
            indices = list(indices)
            layers = [layer + self.depth if layer < 0 else layer for layer in indices]
            valid = all(0 <= layer < self.depth for layer in layers)
        if not valid:
            raise InputError("no such block", where="indices", found=indices,
                             expected=f"1 to {self.depth} last blocks, or a list of indices below {self.depth}")
        return sorted(set(layers))

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a freshly drawn one (``0``: by none)."""
        self.config = replace(self.config, num_classes=num_classes)
        self.head = _classifier(self.config, device=self.pos_embed.device, dtype=self.pos_embed.dtype)
        self.head.train(self.training)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone."""
        return {"pos_embed", "cls_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable


def _classifier(config: ViTConfig, **factory) -> nn.Module:
    return nn.Linear(config.embed_dim, config.num_classes, **factory) if config.num_classes else nn.Identity()
