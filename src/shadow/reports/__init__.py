"""A finished report: its columns, its provenance and its files.

The table of columns is the one home of what a column means; tables are written whole or not at all,
and read as this version has them, also from older reports.
"""
