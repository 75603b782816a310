"""Measure a model: generated answers, exact match, VQA accuracy, divergence from the dense model."""
