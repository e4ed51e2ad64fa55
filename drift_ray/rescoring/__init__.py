"""Stored trajectories, judged anew by another grader: no GPU, no engine, nothing overwritten."""
