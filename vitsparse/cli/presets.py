"""Presets: plain values, merged under a configuration file and flags. What is not named here has its default."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # Handwritten digits, embedded: the whole road in under three minutes on two cores.
    "digits": {
        "data": {"name": "digits"},
        "model": {"patch_size": 2, "embed_dim": 64, "depth": 6, "num_heads": 4},
        "train": {"epochs": 40, "batch_size": 32, "lr": 1.5e-3, "weight_decay": 0.1, "warmup_epochs": 4,
                  "label_smoothing": 0.05, "record_every": 20},
        # MixUp is what a ViT needs to learn from 1,198 images: 97.7 % where geometry and noise alone gave 91 to 96 %.
        "augment": {"rotation_degrees": 8.0, "mixup_alpha": 0.4, "mix_prob": 0.6},
        "discover": {"mlp_groups": 4, "images": 512, "batch_size": 256, "threshold": 1.5e-3},
        "finetune": {"epochs": 30, "batch_size": 32, "lr": 5e-4, "distill_weight": 0.7, "record_every": 20},
    },
    # Twenty classes and a model that two cores train in about twenty minutes.
    "tiny-imagenet-small": {
        "data": {"name": "tiny_imagenet", "classes": 20},
        "model": {"patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4},
        "train": {"epochs": 24, "batch_size": 128, "lr": 1e-3, "warmup_epochs": 2, "label_smoothing": 0.1},
        "augment": {"flip": 0.5, "crop_scale": (0.5, 1.0), "rotation_degrees": 10.0, "noise_std": 0.02,
                    "erase_prob": 0.25, "cutmix_alpha": 1.0, "mixup_alpha": 0.2, "mix_prob": 0.5},
        "discover": {"mlp_groups": 8, "images": 128, "batch_size": 128, "ablation_images": 2000, "threshold": 1.5e-3},
        "finetune": {"epochs": 6, "batch_size": 128, "lr": 3e-4, "distill_weight": 0.5},
    },
    # The experiment that this project grew from, in full: for a GPU.
    "tiny-imagenet": {
        "data": {"name": "tiny_imagenet", "splits": "seed"},
        "model": {"patch_size": 8, "embed_dim": 256, "depth": 12, "num_heads": 8},
        "train": {"epochs": 30, "batch_size": 128, "lr": 1e-3, "warmup_epochs": 3},
        "augment": {"flip": 0.5, "crop_scale": (0.5, 1.0), "rotation_degrees": 15.0, "noise_std": 0.02,
                    "erase_prob": 0.25, "cutmix_alpha": 1.0, "mixup_alpha": 0.2},
        "discover": {"mlp_groups": 8, "images": 1000, "batch_size": 250, "ablation_images": 10_000, "threshold": 1e-3},
        "finetune": {"epochs": 5, "batch_size": 128, "lr": 3e-4, "distill_weight": 0.5},
    },
}
