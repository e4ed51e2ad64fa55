"""Prompts in, verdicts out: where questions come from and how answers are judged."""
