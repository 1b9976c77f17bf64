"""Run folders -> tables. Reads files only, executes nothing that it finds in them, and leaves torch unimported."""
