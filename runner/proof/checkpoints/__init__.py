"""Two checkpoints: read tensor by tensor, compared bit by bit, and one with tensors of the other."""
