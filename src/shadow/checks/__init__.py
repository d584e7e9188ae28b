"""Questions about checkpoints and pairs: what each needs to measure, its answer and its texts."""
