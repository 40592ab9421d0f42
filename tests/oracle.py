"""The meaning of a circuit once more, straight from the formula: names and loops, float64 numpy, one image at a time.

Shares nothing with the package but the names of edges and parameters, so that the two can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from vitsparse.model.config import ViTConfig

Arrays = Mapping[str, np.ndarray]
_erf = np.vectorize(math.erf)


def logits(weights: Arrays, config: ViTConfig, image: np.ndarray, keep: Mapping[str, float], ablated: Arrays,
           granularity: str) -> np.ndarray:
    """Logits [K] of one image [C, S, S]. ``keep`` maps edge names to weights, ``ablated`` sender names to [T, D]."""
    senders = {"input": _embed(weights, config, image)}
    biases = np.zeros(config.embed_dim)

    def read(reader: str) -> np.ndarray:
        total = np.zeros((config.num_tokens, config.embed_dim)) + biases
        for sender, output in senders.items():
            weight = keep[f"{sender}->{reader}"]
            total += weight * output + (1 - weight) * ablated[sender]
        return total

    for layer in range(config.depth):
        at = f"blocks.{layer}"
        heads = {f"a{layer}.h{head}": _head(weights, config, layer, head, read, granularity)
                 for head in range(config.num_heads)}
        senders.update({f"a{layer}": sum(heads.values())} if granularity == "block" else heads)
        biases = biases + weights.get(f"{at}.ls1.gamma", 1.0) * weights[f"{at}.attn.proj.bias"]

        hidden = (_norm(read(f"m{layer}"), weights, f"{at}.norm2", config) @ weights[f"{at}.mlp.fc1.weight"].T
                  + weights[f"{at}.mlp.fc1.bias"])
        hidden = hidden * (1 + _erf(hidden / math.sqrt(2))) / 2
        names = [name for name in ablated if name.split(".")[0] == f"m{layer}"]
        for group, name in enumerate(names):
            units = slice(group * config.mlp_hidden // len(names), (group + 1) * config.mlp_hidden // len(names))
            output = hidden[:, units] @ weights[f"{at}.mlp.fc2.weight"][:, units].T
            senders[name] = weights.get(f"{at}.ls2.gamma", 1.0) * (
                output + weights[f"{at}.mlp.fc2.bias"] / len(names))

    final = read("logits")
    pooled = (_norm(final, weights, "norm", config)[0] if config.global_pool == "token"
              else _norm(final[1:].mean(0), weights, "fc_norm", config))
    return weights["head.weight"] @ pooled + weights["head.bias"]


def _head(weights: Arrays, config: ViTConfig, layer: int, head: int, read: Callable[[str], np.ndarray],
          granularity: str) -> np.ndarray:
    """What one head writes, [T, D]."""
    at, width = f"blocks.{layer}", config.head_dim
    qkv = []
    for part, letter in enumerate("qkv"):
        readers = {"qkv": f"a{layer}.h{head}<{letter}>", "head": f"a{layer}.h{head}"}
        x = _norm(read(readers.get(granularity, f"a{layer}")), weights, f"{at}.norm1", config)
        rows = slice(part * config.embed_dim + head * width, part * config.embed_dim + (head + 1) * width)
        bias = weights[f"{at}.attn.qkv.bias"][rows] if config.qkv_bias else 0.0
        qkv.append(x @ weights[f"{at}.attn.qkv.weight"][rows].T + bias)
    q, k, v = qkv
    columns = weights[f"{at}.attn.proj.weight"][:, head * width: (head + 1) * width]
    return weights.get(f"{at}.ls1.gamma", 1.0) * (_softmax(q @ k.T / math.sqrt(width)) @ v @ columns.T)


def _embed(weights: Arrays, config: ViTConfig, image: np.ndarray) -> np.ndarray:
    size, side = config.patch_size, config.img_size // config.patch_size
    kernel = weights["patch_embed.proj.weight"].reshape(config.embed_dim, -1)
    patches = [image[:, r * size: (r + 1) * size, c * size: (c + 1) * size].reshape(-1)
               for r in range(side) for c in range(side)]
    tokens = [weights["cls_token"][0, 0]] + [kernel @ patch + weights["patch_embed.proj.bias"] for patch in patches]
    return np.stack(tokens) + weights["pos_embed"][0]


def _norm(x: np.ndarray, weights: Arrays, name: str, config: ViTConfig) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_eps)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
