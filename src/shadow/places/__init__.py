"""A tensor's name -> its place in a model.

The closed vocabulary of components and modules, compiled from `registry/names.yaml`; the groups of
modules that figures speak of; and the matrices in a fused or stacked tensor. Reads no checkpoint
and no weight.
"""
