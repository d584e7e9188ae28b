"""Controlled interventions: train tiny models on known mixtures of data and audit their footprints."""
