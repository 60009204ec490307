"""Attention and clustering as stateless functions of arrays: check, cut into tasks, launch kernels.

The order of work is in `clustered._round`: group the queries, attend at the centroids, hand the result to the members.
"""
