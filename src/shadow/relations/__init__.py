"""What corresponds to what in two checkpoints: facts, without words."""
