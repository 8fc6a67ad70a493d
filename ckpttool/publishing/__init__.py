"""Checkpoints to the Hub: what may be uploaded, whether it can be, one commit that shows all of it, and a model card."""
