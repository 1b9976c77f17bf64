"""Many runs: which are to be made, where they run, and what survives."""
