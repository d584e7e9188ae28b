"""Names that people type -> the pairs to audit.

Families, lists, globs and references, the reader of their YAML, which knows the line of every
entry, and the schema for checking family files in editors. Opens no checkpoint.
"""
