"""Price it: measure the FLOPs, memory and seconds that a training step takes."""
