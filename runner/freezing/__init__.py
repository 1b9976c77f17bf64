"""What is frozen, and when: patterns, what they select, the optimizer's groups, the phases of a run."""
