"""Data of the examples, made from a seed with NumPy alone, so that tests can make the same again without PyTorch."""
