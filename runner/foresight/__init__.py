"""Look first: what would leak, drift or stay idle, before anything is trained."""
