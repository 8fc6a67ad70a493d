"""Whether a conversion is right, and what it cost: two checkpoints held together, by parts and by a forward pass."""
