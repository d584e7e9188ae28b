"""Rules and finished reports -> verdicts."""
