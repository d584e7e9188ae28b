"""A question, its figures, its null, its error rate -> an answer. Pure."""
