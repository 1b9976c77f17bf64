"""Turn run folders into tables, figures and one HTML page. Never imports torch or executes what the folders contain."""
