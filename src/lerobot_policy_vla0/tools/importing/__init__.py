"""Checkpoints that LeRobot did not write, as policy folders."""
