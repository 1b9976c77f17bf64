"""One run on disk: written and read here."""
