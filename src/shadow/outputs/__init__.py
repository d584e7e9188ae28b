"""Outputs: results to look at or to load elsewhere.

The terminal, the web page, figures, exports to formats of others, and what continuous integration
shows.
"""
