"""The unmodified vision-language model: loading, running, and the tiny default."""
