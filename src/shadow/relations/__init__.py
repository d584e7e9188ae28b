"""Correspondence of two checkpoints: units and rows that are each other's. Facts, without words."""
