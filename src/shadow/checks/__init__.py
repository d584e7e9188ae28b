"""Questions about checkpoints and pairs: what each needs measured, its answer, and its words."""
