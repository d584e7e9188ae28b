"""Conditions that a person sets for a report or a check: rules, policies and baselines."""
