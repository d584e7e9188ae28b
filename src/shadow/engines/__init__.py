"""The audit of one pair, and the engines that run its tasks: this process or Ray."""
