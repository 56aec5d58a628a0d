"""The prompt, actions as integers in text, and the grammar of an answer."""
