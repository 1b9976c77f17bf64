"""What `check` looks at besides types: ranges of numbers, metrics, and what this machine has. No torch."""
