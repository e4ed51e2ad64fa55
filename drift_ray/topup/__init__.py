"""More trajectories where they matter: prompts with a low ESS, and prompts that nobody solved."""
