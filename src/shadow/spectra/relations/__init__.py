"""Relations between models: merged adapters, mixtures, quantised copies, common hidden units."""
