"""Training what pruning left, against the dense original: SparseLoRA and cross-modality adaptation."""
