"""What the runs of a sweep compute once, and read again from files in the sweep's folder."""
