"""A finished report: its columns, its provenance and its files.

The table of columns defines the meaning of each column; tables are written atomically, and older
reports are read in the form of this version.
"""
