"""Look first: predict before training which frozen tensors would change all the same, and which others would not move."""
