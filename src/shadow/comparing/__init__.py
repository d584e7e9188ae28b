"""Several reports -> comparison, lineage, scores, figures that others published."""
