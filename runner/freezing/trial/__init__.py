"""One forward pass on a real batch, and what it shows of a model: its head, and which modules take which input."""
