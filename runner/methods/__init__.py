"""Ways to freeze, one file a method."""
