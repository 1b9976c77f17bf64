"""Known results about freezing over time, measured anew by runs of this project; the command is `__main__.py`."""
