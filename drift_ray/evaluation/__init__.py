"""How well a policy solves held-out prompts: pure metrics, and the stage that measures them."""
