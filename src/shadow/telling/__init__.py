"""Figures and answers -> ordered statements about a pair."""
