"""Look first: predict what would leak, which buffers would change and what would stay idle, before training."""
