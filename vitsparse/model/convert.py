"""ViTs of timm and torchvision as ours, with equal logits, or a refusal that names the reason.

Nothing is ignored: every submodule must be of a type listed here for its place, every weight must have its
counterpart, and at last both models see the same random image and must agree. The types are compared by name, so
neither library is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .config import POOLS, ViTConfig
from .vit import ViT
from .weights import build

_TORCH = "torch.nn.modules"
_CONV, _LINEAR, _GELU = f"{_TORCH}.conv.Conv2d", f"{_TORCH}.linear.Linear", f"{_TORCH}.activation.GELU"
_IDENTITY, _DROPOUT = f"{_TORCH}.linear.Identity", f"{_TORCH}.dropout.Dropout"
_SEQUENTIAL, _NORM = f"{_TORCH}.container.Sequential", f"{_TORCH}.normalization.LayerNorm"
_TIMM_NORM, _TIMM_VIT = "timm.layers.norm.LayerNorm", "timm.models.vision_transformer"
_TV_VIT = "torchvision.models.vision_transformer"

TIMM_MODULES: dict[str, tuple[str, ...]] = {
    "": (f"{_TIMM_VIT}.VisionTransformer",),
    "patch_embed": ("timm.layers.patch_embed.PatchEmbed",),
    "patch_embed.proj": (_CONV,),
    "patch_embed.norm": (_IDENTITY,),
    "pos_drop": (_DROPOUT,),
    "patch_drop": (_IDENTITY,),
    "norm_pre": (_IDENTITY,),
    "blocks": (_SEQUENTIAL,),
    "blocks.*": (f"{_TIMM_VIT}.Block",),
    "blocks.*.norm1": (_NORM, _TIMM_NORM),
    "blocks.*.attn": ("timm.layers.attention.Attention", f"{_TIMM_VIT}.Attention"),
    "blocks.*.attn.qkv": (_LINEAR,),
    "blocks.*.attn.q_norm": (_IDENTITY,),
    "blocks.*.attn.k_norm": (_IDENTITY,),
    "blocks.*.attn.attn_drop": (_DROPOUT,),
    "blocks.*.attn.norm": (_IDENTITY,),
    "blocks.*.attn.proj": (_LINEAR,),
    "blocks.*.attn.proj_drop": (_DROPOUT,),
    "blocks.*.ls1": (_IDENTITY, "timm.layers.layer_scale.LayerScale", f"{_TIMM_VIT}.LayerScale"),
    "blocks.*.drop_path1": (_IDENTITY, "timm.layers.drop.DropPath"),
    "blocks.*.norm2": (_NORM, _TIMM_NORM),
    "blocks.*.mlp": ("timm.layers.mlp.Mlp",),
    "blocks.*.mlp.fc1": (_LINEAR,),
    "blocks.*.mlp.act": (_GELU, "timm.layers.activations.GELU"),
    "blocks.*.mlp.drop1": (_DROPOUT,),
    "blocks.*.mlp.norm": (_IDENTITY,),
    "blocks.*.mlp.fc2": (_LINEAR,),
    "blocks.*.mlp.drop2": (_DROPOUT,),
    "blocks.*.ls2": (_IDENTITY, "timm.layers.layer_scale.LayerScale", f"{_TIMM_VIT}.LayerScale"),
    "blocks.*.drop_path2": (_IDENTITY, "timm.layers.drop.DropPath"),
    "norm": (_IDENTITY, _NORM, _TIMM_NORM),
    "fc_norm": (_IDENTITY, _NORM, _TIMM_NORM),
    "head_drop": (_DROPOUT,),
    "head": (_LINEAR, _IDENTITY),
}
TORCHVISION_MODULES: dict[str, tuple[str, ...]] = {
    "": (f"{_TV_VIT}.VisionTransformer",),
    "conv_proj": (_CONV,),
    "encoder": (f"{_TV_VIT}.Encoder",),
    "encoder.dropout": (_DROPOUT,),
    "encoder.layers": (_SEQUENTIAL,),
    "encoder.layers.encoder_layer_*": (f"{_TV_VIT}.EncoderBlock",),
    "encoder.layers.encoder_layer_*.ln_1": (_NORM,),
    "encoder.layers.encoder_layer_*.self_attention": (f"{_TORCH}.activation.MultiheadAttention",),
    "encoder.layers.encoder_layer_*.self_attention.out_proj": (f"{_TORCH}.linear.NonDynamicallyQuantizableLinear",),
    "encoder.layers.encoder_layer_*.dropout": (_DROPOUT,),
    "encoder.layers.encoder_layer_*.ln_2": (_NORM,),
    "encoder.layers.encoder_layer_*.mlp": (f"{_TV_VIT}.MLPBlock",),
    "encoder.layers.encoder_layer_*.mlp.0": (_LINEAR,),
    "encoder.layers.encoder_layer_*.mlp.1": (_GELU,),
    "encoder.layers.encoder_layer_*.mlp.2": (_DROPOUT,),
    "encoder.layers.encoder_layer_*.mlp.3": (_LINEAR,),
    "encoder.layers.encoder_layer_*.mlp.4": (_DROPOUT,),
    "encoder.ln": (_NORM,),
    "heads": (_SEQUENTIAL,),
    "heads.head": (_LINEAR,),
}
# Our key (timm's) and torchvision's; entries ending in a dot stand for every parameter of that module.
TORCHVISION_KEYS: dict[str, str] = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj.": "conv_proj.",
    "blocks.*.norm1.": "encoder.layers.encoder_layer_*.ln_1.",
    "blocks.*.attn.qkv.weight": "encoder.layers.encoder_layer_*.self_attention.in_proj_weight",
    "blocks.*.attn.qkv.bias": "encoder.layers.encoder_layer_*.self_attention.in_proj_bias",
    "blocks.*.attn.proj.": "encoder.layers.encoder_layer_*.self_attention.out_proj.",
    "blocks.*.norm2.": "encoder.layers.encoder_layer_*.ln_2.",
    "blocks.*.mlp.fc1.": "encoder.layers.encoder_layer_*.mlp.0.",
    "blocks.*.mlp.fc2.": "encoder.layers.encoder_layer_*.mlp.3.",
    "norm.": "encoder.ln.",
    "head.": "heads.head.",
}
# What users call the parts that a plain ViT does not have, by the attribute or place that shows them.
_FOREIGN_PARTS = {"reg_token": "register tokens", "dist_token": "a distillation token", "head_dist": "a distilled head",
                  "attn_pool": "attention pooling", "rope": "rotary position embedding",
                  "rel_pos_bias": "relative position bias", "shared_rel_pos_bias": "relative position bias"}
_FOREIGN_PLACES = {"norm_pre": "a norm before the blocks (pre-norm stem)", "patch_drop": "patch dropout",
                   "patch_embed.norm": "a norm on the patch embedding", "patch_embed": "this patch embedding",
                   "blocks.*": "blocks of another kind", "blocks.*.attn": "attention of another kind",
                   "blocks.*.attn.q_norm": "qk-norm", "blocks.*.attn.k_norm": "qk-norm",
                   "blocks.*.attn.norm": "a norm on the attention output (scale_attn_norm)",
                   "blocks.*.attn.gate": "gated attention", "blocks.*.mlp": "an MLP of another kind",
                   "blocks.*.mlp.norm": "a norm inside the MLP (scale_mlp_norm)",
                   "blocks.*.mlp.act": "an activation other than GELU",
                   "encoder.layers.encoder_layer_*.mlp.1": "an activation other than GELU",
                   "blocks.*.norm1": "norms other than LayerNorm",
                   "conv_proj": "a convolutional stem", "heads.pre_logits": "a hidden layer before the classifier"}


def from_timm(timm_vit: nn.Module) -> ViT:
    """Our ViT with copies of the weights of a timm ``VisionTransformer`` and equal logits, on the same device.

    Raises :class:`InputError` naming what a plain pre-norm ViT with class token cannot represent.
    """
    convert = "from_timm"
    for name, what in _FOREIGN_PARTS.items():
        if getattr(timm_vit, name, None) is not None:
            raise _refusal(convert, what, where=name)
    pool = getattr(timm_vit, "global_pool", "token")
    if pool not in POOLS:
        raise _refusal(convert, f"global_pool={pool!r}", where="global_pool", expected=f"one of {POOLS}", found=pool)
    plain = {"has_class_token": True, "no_embed_class": False, "pool_include_prefix": False, "dynamic_img_size": False}
    for name, value in plain.items():
        if (found := getattr(timm_vit, name, value)) != value:
            raise _refusal(convert, f"{name}={found}", where=name, expected=value, found=found)
    _check_types(convert, timm_vit, TIMM_MODULES)
    config = _timm_config(timm_vit)
    model = _with_weights(convert, config, timm_vit, timm_vit.state_dict())
    _check_agreement(convert, timm_vit, model,
                     lambda images: timm_vit.forward_head(timm_vit.forward_features(images), pre_logits=True))
    return model


def from_torchvision(tv_vit: nn.Module) -> ViT:
    """Our ViT with copies of the weights of a torchvision ``VisionTransformer`` and equal logits, on the same device.

    Raises :class:`InputError` naming what a plain pre-norm ViT with class token cannot represent.
    """
    convert = "from_torchvision"
    _check_types(convert, tv_vit, TORCHVISION_MODULES)
    config = _torchvision_config(tv_vit)
    theirs = {theirs: ours for ours, theirs in TORCHVISION_KEYS.items()}
    state = {_renamed(key, theirs): tensor for key, tensor in tv_vit.state_dict().items()}
    model = _with_weights(convert, config, tv_vit, state)

    def pre_logits(images: Tensor) -> Tensor:
        patches = tv_vit.conv_proj(images).flatten(2).transpose(1, 2)
        return tv_vit.encoder(torch.cat([tv_vit.class_token.expand(len(patches), -1, -1), patches], dim=1))[:, 0]

    _check_agreement(convert, tv_vit, model, pre_logits)
    return model


def to_torchvision_state_dict(model: ViT) -> dict[str, Tensor]:
    """The weights under torchvision's keys (for timm no conversion is needed: ``model.state_dict()`` has its keys)."""
    fits = {"global_pool": "token", "qkv_bias": True, "init_values": None, "norm_eps": 1e-6}
    for name, value in fits.items():
        if (found := getattr(model.config, name)) != value:
            raise InputError(f"torchvision's ViT has no {name}={found}", where=name, expected=value, found=found)
    if not model.num_classes:
        raise InputError("torchvision's ViT always has a classifier", where="num_classes", expected="at least 1",
                         found=0)
    return {_renamed(key, TORCHVISION_KEYS): tensor for key, tensor in model.state_dict().items()}


def _timm_config(source: nn.Module) -> ViTConfig:
    convert, first = "from_timm", source.blocks[0]
    if source.pos_embed is None:
        raise _refusal(convert, "a model without position embedding", where="pos_embed")
    final, other = ("norm", "fc_norm") if source.global_pool == "token" else ("fc_norm", "norm")
    if isinstance(getattr(source, final), nn.Identity) or not isinstance(getattr(source, other), nn.Identity):
        raise _refusal(convert, f"the place of the final norm with global_pool={source.global_pool!r}", where="fc_norm",
                       expected=f"a LayerNorm in {final}, none in {other}",
                       found=f"{final}: {getattr(source, final)}, {other}: {getattr(source, other)}")
    for layer, block in enumerate(source.blocks):
        attn, head_dim = block.attn, source.embed_dim // first.attn.num_heads
        if attn.num_heads != first.attn.num_heads or not math.isclose(attn.scale, head_dim**-0.5):
            raise _refusal(convert, "heads of another number, width or scale", where=f"blocks.{layer}.attn",
                           expected=f"{first.attn.num_heads} heads, scale {head_dim**-0.5:.4g}",
                           found=f"{attn.num_heads} heads, scale {attn.scale:.4g}")
    rates = [_rates(convert, source, pattern) for pattern in (r"blocks\.\d+\.attn\.attn_drop",
                                                              r"blocks\.\d+\.(attn\.proj_drop|mlp\.drop[12])")]
    return ViTConfig(
        **_patch_arguments(convert, source.patch_embed.proj, source.patch_embed.img_size),
        num_classes=getattr(source.head, "out_features", 0), embed_dim=source.embed_dim, depth=len(source.blocks),
        num_heads=first.attn.num_heads, mlp_ratio=_mlp_ratio(first.mlp.fc1), qkv_bias=first.attn.qkv.bias is not None,
        init_values=getattr(first.ls1, "init_values", None), global_pool=source.global_pool,
        norm_eps=_common_eps(convert, source), drop_rate=source.head_drop.p, pos_drop_rate=source.pos_drop.p,
        attn_drop_rate=rates[0], proj_drop_rate=rates[1], drop_path_rate=_drop_path_rate(convert, source.blocks))


def _torchvision_config(source: nn.Module) -> ViTConfig:
    convert, layers = "from_torchvision", source.encoder.layers
    first = layers[0]
    for name, layer in layers.named_children():
        attn = layer.self_attention
        if attn.num_heads != first.self_attention.num_heads or attn.add_zero_attn or not attn.batch_first:
            raise _refusal(convert, "attention of another kind", where=f"encoder.layers.{name}.self_attention",
                           expected=f"{first.self_attention.num_heads} heads, batch first, no added zero", found=attn)
        _same_rate(convert, f"encoder.layers.{name}.self_attention", attn.dropout, first.self_attention.dropout)
    return ViTConfig(
        **_patch_arguments(convert, source.conv_proj, (source.image_size, source.image_size)),
        num_classes=source.heads.head.out_features, embed_dim=source.hidden_dim, depth=len(layers),
        num_heads=first.self_attention.num_heads, mlp_ratio=_mlp_ratio(first.mlp[0]),
        norm_eps=_common_eps(convert, source), pos_drop_rate=source.encoder.dropout.p,
        attn_drop_rate=first.self_attention.dropout,
        proj_drop_rate=_rates(convert, source, r"encoder\.layers\.\w+\.(dropout|mlp\.[24])"))


def _patch_arguments(convert: str, proj: nn.Conv2d, img_size: tuple[int, int]) -> dict[str, int]:
    patch = proj.kernel_size[0]
    plain = (proj.kernel_size == proj.stride == (patch, patch) and proj.dilation == (1, 1) and proj.groups == 1
             and proj.padding in ((0, 0), "valid") and img_size[0] == img_size[1] and img_size[0] % patch == 0)
    if not plain:
        raise _refusal(convert, "this patch embedding", where="patch embedding", found=f"{proj} on images {img_size}",
                       expected="square patches that tile a square image without overlap")
    return {"img_size": img_size[0], "patch_size": patch, "in_chans": proj.in_channels}


def _mlp_ratio(fc1: nn.Linear) -> float:
    """The ratio that gives exactly this many hidden units, whichever way the division rounds."""
    ratio = fc1.out_features / fc1.in_features
    return ratio if int(fc1.in_features * ratio) == fc1.out_features else math.nextafter(ratio, math.inf)


def _common_eps(convert: str, source: nn.Module) -> float:
    norms = {name: module.eps for name, module in source.named_modules() if isinstance(module, nn.LayerNorm)}
    first = next(iter(norms.values()))
    for name, eps in norms.items():
        if eps != first:
            raise _refusal(convert, "norms with different eps", where=name, expected=first, found=eps)
    return first


def _rates(convert: str, source: nn.Module, pattern: str) -> float:
    """The one dropout rate of all modules whose name matches."""
    rates = {name: module.p for name, module in source.named_modules() if re.fullmatch(pattern, name)}
    first = next(iter(rates.values()))
    for name, rate in rates.items():
        _same_rate(convert, name, rate, first)
    return first


def _same_rate(convert: str, where: str, rate: float, first: float) -> None:
    if rate != first:
        raise _refusal(convert, "dropout rates that differ between layers", where=where, expected=first, found=rate)


def _drop_path_rate(convert: str, blocks: nn.Sequential) -> float:
    last = len(blocks) - 1
    # timm spaces the rates in single precision; rounding gives the number back that was asked for.
    final = round(float(getattr(blocks[last].drop_path1, "drop_prob", 0.0)), 6)
    for layer, block in enumerate(blocks):
        for name in ("drop_path1", "drop_path2"):
            rate, expected = getattr(getattr(block, name), "drop_prob", 0.0), final * layer / max(last, 1)
            if abs(rate - expected) > 1e-5:
                raise _refusal(convert, "drop path rates that do not grow linearly", where=f"blocks.{layer}.{name}",
                               expected=expected, found=rate)
    return final


def _check_types(convert: str, source: nn.Module, allowed: Mapping[str, tuple[str, ...]]) -> None:
    for name, module in source.named_modules():
        place = re.sub(r"(blocks\.|encoder_layer_)\d+", r"\1*", name)
        found = f"{type(module).__module__}.{type(module).__qualname__}"
        expected = allowed.get(place, ())
        if found not in expected or getattr(module, "approximate", "none") != "none":
            what = _FOREIGN_PLACES.get(place, f"{found.rpartition('.')[2]} as {name or 'the model'}")
            raise _refusal(convert, what, where=name, expected=" or ".join(expected) or "no such part",
                           found=module if found in expected else found)
    for name, module in source.named_modules():
        if getattr(module, "bias", ...) is None and not name.endswith("attn.qkv"):
            raise _refusal(convert, "layers without bias", where=name, expected="a bias", found=module)


def _with_weights(convert: str, config: ViTConfig, source: nn.Module, state: Mapping[str, Tensor]) -> ViT:
    kinds = sorted({f"{tensor.dtype} on {tensor.device}" for tensor in state.values()})
    if len(kinds) > 1:
        raise _refusal(convert, "weights of several dtypes or devices", where="parameters", found=", ".join(kinds))
    some = next(iter(state.values()))
    return build(config, state, where=convert, device=some.device, dtype=some.dtype).train(source.training)


@torch.no_grad()
def _check_agreement(convert: str, source: nn.Module, model: ViT, pre_logits: Callable[[Tensor], Tensor]) -> None:
    """Both models must say the same about a random image: what no table foresaw shows here."""
    weight, config = model.pos_embed, model.config
    if weight.is_meta:
        return
    images = torch.randn(1, config.in_chans, config.img_size, config.img_size,
                         generator=torch.Generator().manual_seed(0)).to(weight)
    with _evaluating(source), _evaluating(model):
        theirs = pre_logits(images)
        ours = model.forward_head(model.forward_features(images), pre_logits=True)
    error = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(torch.finfo(weight.dtype).tiny))
    if not error <= torch.finfo(weight.dtype).eps ** 0.5:
        raise _refusal(convert, "something in this model that changes its output", where="a random image",
                       expected="equal features before the classifier", found=f"a relative difference of {error:.1e}")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _renamed(key: str, table: Mapping[str, str]) -> str:
    """``key`` by the table from patterns to patterns, where ``*`` is the layer; a key it does not list stays."""
    layer = re.search(r"(?:blocks\.|encoder_layer_)(\d+)", key)
    for ours, theirs in table.items():
        ours, theirs = (part.replace("*", layer[1]) if layer else part for part in (ours, theirs))
        if key == ours or (ours.endswith(".") and key.startswith(ours)):
            return theirs + key.removeprefix(ours)
    return key


def _refusal(convert: str, what: str, *, where: str, **sides: Any) -> InputError:
    return InputError(f"{convert} cannot represent {what}", where=where or "the model", **sides)
