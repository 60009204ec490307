"""Readers and writers of weight files: every length is checked before an allocation, and nothing is executed."""

from pyclattn.weights.safetensors import SafeTensors, write_safetensors

__all__ = ["SafeTensors", "write_safetensors"]
