"""What people see, in the terminal and on the page alike: numbers with units, and tables that fit a terminal."""
