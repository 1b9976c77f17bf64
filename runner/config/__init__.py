"""The config: its schema, its checks, its names and hashes, and the objects that its nodes build."""
