"""Serves policies to robots."""
