"""From predicted chunks to the actions that are sent."""
