"""One run on disk: writing and reading its folder."""
