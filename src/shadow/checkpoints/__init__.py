"""Files of checkpoints, and the pairing of two checkpoints.

Folders and the Hub, headers of safetensors files, pickles, adapters, quantised formats, and the
matrix pairs that two checkpoints make. The only package that knows the Hub. Computes nothing.
"""
