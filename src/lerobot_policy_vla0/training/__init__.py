"""The loss on the answer's tokens, and what is random while training."""
