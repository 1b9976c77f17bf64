"""The frozen prefix of a model: where it ends, how it is left out of a forward pass, and whether it may be."""
