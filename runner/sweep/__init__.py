"""Many runs: which ones a sweep consists of, launching them, and resuming after an interruption."""
