"""Whole models on real data: what a user gets, beside what a user has."""
