"""Two checkpoints, part by part: the same bytes, the same values, or how far apart."""
