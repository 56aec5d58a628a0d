"""Policies as servers."""
