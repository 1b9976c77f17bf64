"""Price it: the FLOPs, memory and time of a training step."""
