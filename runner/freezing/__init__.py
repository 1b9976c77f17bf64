"""What is frozen, and when: patterns, the selection, the optimizer's parameter groups, the phases of a run."""
