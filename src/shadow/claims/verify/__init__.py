"""Claims of `shadow verify`: what a scan of checkpoints found -> an answer, and what speaks against
it.

Pure: `audits` measures the figures.
"""
