"""Training in PyTorch, exporting, running in pyclattn: one script a task, and the data they make themselves."""
