"""Requests for audits: one pair or a list of pairs, its index, and its cost."""
