"""What a batch holds, and camera images as the patches the model reads."""
