"""What a model or a circuit is worth: ablation values, metrics, accuracy and latency."""
