"""Returns, importance weights and what they say: pure mathematics, and the stage that runs it."""
