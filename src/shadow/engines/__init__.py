"""The audit of one pair, and what carries out tasks: this process or Ray."""
