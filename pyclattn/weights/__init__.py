"""Readers and writers of weight files: every length is checked before an allocation, and nothing is executed.

load          load_weights: any file -> arrays;  read_checkpoint: all a PyTorch file holds
  kinds       what a file is, by its first bytes
  pytorch     zip and legacy files -> a tree;  archive: members of a zip
  unpickler   a pickle -> objects;  allowed: what it may name;  pickled: what other objects become
  checkpoint  which part of a tree holds the weights, and their names
  safetensors reader and writer;  strict_json: headers and indices
  targets     files that are written;  numpy_files: .npy and .npz, for command lines
  tensors     where elements lie -> arrays;  dtypes: element types NumPy lacks;  source: a file in memory
"""

from pyclattn.weights.load import load_weights, read_checkpoint
from pyclattn.weights.pickled import Placeholder
from pyclattn.weights.safetensors import SafeTensors, write_safetensors

__all__ = ["Placeholder", "SafeTensors", "load_weights", "read_checkpoint", "write_safetensors"]
