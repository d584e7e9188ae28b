"""One pair of checkpoints: plan, memory, workers and journal of what is read and measured."""
