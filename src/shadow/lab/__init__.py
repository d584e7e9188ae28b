"""Controlled interventions: train tiny models on known mixtures of data, audit their footprints."""
