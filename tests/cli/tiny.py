"""Flags of a run on the digits that is over in seconds."""

from __future__ import annotations

DATA = ["--data.train_images", "64", "--data.eval_images", "40"]
MODEL = ["--model.depth", "2", "--model.num_heads", "2", "--model.embed_dim", "16", "--model.patch_size", "4"]
TRAIN = ["--train.epochs", "2", "--train.batch_size", "32", "--train.warmup_epochs", "0", "--train.record_every", "2"]
DISCOVER = ["--discover.granularity", "block", "--discover.mlp_groups", "1", "--discover.images", "32",
            "--discover.threshold", "1e-6"]
FINETUNE = ["--finetune.epochs", "1", "--finetune.batch_size", "32"]
BENCH = ["--bench.batches", "1", "3", "--bench.repeats", "3", "--bench.min_seconds", "0",
         "--bench.baselines", "eager"]
EVERYTHING = [*DATA, *MODEL, *TRAIN, *DISCOVER, *FINETUNE, *BENCH, "--device", "cpu"]
