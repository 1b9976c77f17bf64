"""Run folders -> tables, pictures and one page. Reads files only, executes nothing that it finds in them, and leaves torch unimported."""
