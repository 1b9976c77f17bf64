"""The frozen prefix of a model: where it ends, whether it can be skipped, and how the forward pass skips it."""
