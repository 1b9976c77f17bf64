"""Tasks: how a batch meets the model and becomes a loss. Any callable `task(model, batch)` that returns a loss is a task."""
