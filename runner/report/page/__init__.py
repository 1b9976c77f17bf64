"""The page: one HTML file, its tables as data, and the template that shows them."""
