"""Rollouts: a frozen policy plays multi-turn episodes; trajectories land in Parquet.

Read in the order of the data: ``chat`` (messages to tokens), ``episode`` (one trajectory),
``protocol`` and the engines behind it, ``player`` (many episodes on one engine), ``loop`` (the
thread that owns one), ``dispatch`` (which replica plays what), ``worker``, ``fleet`` and ``pool``
(Ray), ``sampling`` (missing parts of a folder), ``monitor`` and ``status`` (seen from outside),
``stage``.
"""
