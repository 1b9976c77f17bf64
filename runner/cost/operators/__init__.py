"""The operators of torch that a step runs: what each of them computes, and what it returns for tensors without values."""
