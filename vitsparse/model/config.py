"""What fixes the shape of a Vision Transformer: one frozen value with timm's argument names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import InputError, nearest

POOLS = ("token", "avg")
_SIZES = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads")
_RATES = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Arguments of a pre-norm ViT. Names and defaults are those of timm's ``VisionTransformer``.

    Images are square, ``[B, in_chans, img_size, img_size]``, and split into patches without a remainder.
    ``num_classes=0`` leaves out the classifier; ``init_values`` switches LayerScale on. ``global_pool="token"``
    classifies the class token after the final norm, ``"avg"`` normalises the mean of the patch tokens.
    Raises :class:`InputError` naming the field that is wrong.
    """

    img_size: int = 224
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    init_values: float | None = None
    global_pool: str = "token"
    norm_eps: float = 1e-6
    drop_rate: float = 0.0
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    def __post_init__(self):
        for name in _SIZES:
            self._require(name, _is_int(getattr(self, name)) and getattr(self, name) >= 1, "an integer of at least 1")
        self._require("num_classes", _is_int(self.num_classes) and self.num_classes >= 0, "an integer of at least 0")
        self._require("img_size", self.img_size % self.patch_size == 0, f"a multiple of patch_size={self.patch_size}")
        self._require("embed_dim", self.embed_dim % self.num_heads == 0, f"a multiple of num_heads={self.num_heads}")
        self._require("mlp_ratio", _is_real(self.mlp_ratio) and self.embed_dim * self.mlp_ratio >= 1,
                      "a number that gives the MLP at least one hidden unit")
        self._require("qkv_bias", isinstance(self.qkv_bias, bool), "True or False")
        self._require("init_values", self.init_values is None or (_is_real(self.init_values) and self.init_values > 0),
                      "a number above 0, or None for no LayerScale")
        self._require("global_pool", self.global_pool in POOLS, f"one of {POOLS}")
        self._require("norm_eps", _is_real(self.norm_eps) and self.norm_eps > 0, "a number above 0")
        for name in _RATES:
            rate = getattr(self, name)
            self._require(name, _is_real(rate) and 0 <= rate < 1, "a number in [0, 1)")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"ViT: {name} is not valid", where=name, expected=expected,
                             found=repr(getattr(self, name)))

    @property
    def num_patches(self) -> int:
        return (self.img_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """T: the patches and the class token."""
        return self.num_patches + 1

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def mlp_hidden(self) -> int:
        return int(self.embed_dim * self.mlp_ratio)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; :meth:`from_dict` gives an equal config back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: object = "") -> ViTConfig:
        """A config from named values; an unknown name raises :class:`InputError` with the nearest known one."""
        if not isinstance(values, Mapping):
            raise InputError("the arguments of a ViT are not a table of named values", where=where,
                             expected="name: value", found=type(values).__name__)
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(f"ViT has no argument {name!r}", where=where, expected=", ".join(known), found=name,
                                 remedy=nearest(name, known))
        try:
            return cls(**values)
        except InputError as error:
            raise (error.within(where) if str(where) else error) from None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
