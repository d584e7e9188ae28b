"""Claims of `shadow verify`: checkpoints, read in passes over their entries -> a verification.

The answers are those of `claims.verify`.
"""
