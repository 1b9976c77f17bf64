"""What was asked: the schema of the config, its checks, and the objects that its nodes build."""
