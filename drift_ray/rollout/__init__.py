"""Rollouts: a frozen policy plays multi-turn episodes; trajectories land in Parquet.

Read in the order of the data: ``chat`` (messages to tokens), ``episode`` (one trajectory),
``engine`` (vLLM), ``player`` (many episodes on one engine), ``worker`` and ``pool`` (Ray),
``sampling`` (missing parts of a folder), ``stage``.
"""
