"""Offline and online methods on one scale: what each reaches, and what that costs.

``make evidence`` runs the plan of ``plan.py``; ``make evidence-smoke`` does so with tiny sizes.
"""
