"""Price it: what a step computes, keeps and takes."""
