"""What a query's time allows a robot to do."""
