"""``vla0 inspect-dataset`` and ``vla0 open-loop`` look at data and at a policy without a robot."""
