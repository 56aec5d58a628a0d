"""LIBERO without questions: its configuration and assets."""
