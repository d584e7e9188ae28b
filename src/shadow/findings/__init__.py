"""Rows of reports -> what may be said of them.

Summaries and their intervals, labels and what they rest on, comparisons of reports, and the scores
that others measured. Starts from finished tables; opens no checkpoint.
"""
