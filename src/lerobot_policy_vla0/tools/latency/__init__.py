"""Computes what a query's time allows a robot to do."""
