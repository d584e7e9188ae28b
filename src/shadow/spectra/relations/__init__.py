"""Relations between models: merged adapters, mixtures, quantised copies, hidden units in common."""
