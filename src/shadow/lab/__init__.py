"""Controlled experiments: train tiny models on known mixtures of data, and audit the result."""
