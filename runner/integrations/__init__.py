"""Callbacks that audit the training loops of other libraries, a module for each library."""
