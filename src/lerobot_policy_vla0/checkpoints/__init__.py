"""Reading and writing policies, adapters and model cards."""
