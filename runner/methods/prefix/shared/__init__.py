"""The outputs of frozen first layers (the prefix), computed once for all runs of a sweep."""
