"""Exports a policy for inference engines that serve its backbone and know nothing of this package."""
