"""Figures and answers -> what is said of a pair, in order."""
