"""A finished report: its columns, its provenance and its files."""
