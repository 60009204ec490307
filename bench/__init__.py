"""Measurements: one table of cases (`cases`), peers in the same process (`peers`), rounds (`measure`), rows, reports.

``python -m bench`` lists the commands.
"""
