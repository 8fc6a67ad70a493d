"""Checkpoints to the Hub: what may be uploaded and whether it can be, one commit that shows all of it, a model card."""
