"""The HTML page: its tables as data, and the template that renders them."""
