"""Build everything that exists before the first step. No other package builds objects from the config."""
