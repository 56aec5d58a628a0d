"""Configures LIBERO and checks its assets."""
