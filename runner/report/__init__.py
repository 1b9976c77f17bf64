"""Run folders -> tables, pictures and one page. Reads files only, executes nothing in them, leaves torch unimported."""
