"""Arrays in, numbers out.

The spectrum of a matrix and of a delta, and every number that is computed from it. Knows neither
files nor names: a matrix is a tensor, or an object that yields blocks of one.
"""
