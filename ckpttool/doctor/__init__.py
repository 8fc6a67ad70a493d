"""Will a checkpoint run here, how, and if not, what to type: rules read in the runtimes' own code, as tables."""
