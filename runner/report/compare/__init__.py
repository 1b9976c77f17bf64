"""What runs have in common and where they differ: settings, methods, costs and the bits of what was trained."""
