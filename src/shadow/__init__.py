"""`shadow` audits families of open-source models: spectra and ranks of weights and of weight deltas."""

__version__ = "0.1.0"
