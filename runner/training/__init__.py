"""Plain PyTorch that knows nothing of freezing: the loop, data, tasks, models, optimizers, schedulers."""
