"""What the runs of a sweep compute once: values and outputs in files of the sweep's folder, and random numbers in memory."""
