"""The answer of a report: which method or setting to use, with what evidence, and what is not known."""
