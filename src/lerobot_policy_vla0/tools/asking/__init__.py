"""Questions to a policy without a robot: where the pictures come from, and how much language a fine-tune kept."""
