"""The frozen first layers of a model, called the prefix: where they end, and how a forward pass can skip them."""
