"""Models of other libraries, and the values of their tensors: by name, from a config alone, or from a file."""
