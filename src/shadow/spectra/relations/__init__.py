"""Relations between models: merged adapters, quantised copies, common hidden units."""
