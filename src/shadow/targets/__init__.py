"""Names that people type -> the pairs to audit.

Families, lists, globs and references, the reader of their YAML, which knows the line of every
entry, and the schema that editors check family files with. Opens no checkpoint.
"""
