"""What `--help` prints, and the sentences about keys that the docs take from here."""
