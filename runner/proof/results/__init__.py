"""What an audit returns: a row for each tensor, the rows of each phase, and sentences for the user."""
