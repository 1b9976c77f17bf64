"""Where batches come from: datasets in torch's DataLoader, iterables of batches, and synthetic data of any shape."""
