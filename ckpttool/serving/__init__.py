"""What serving a checkpoint takes: weights, cache and overhead, on which GPUs, by which command."""
