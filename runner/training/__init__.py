"""Plain PyTorch without code for freezing: the training loop, data, tasks, models, optimizers, schedulers."""
