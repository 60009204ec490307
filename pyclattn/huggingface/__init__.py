"""Folders as Hugging Face's libraries save them, config.json beside weights, as Programs.

`folder` finds the files, `settings` reads config.json, `names` has the renaming rules of each kind of model, `text`
and `image` put models together from layers, and `builder` writes layers as operators. A Program, and not the layers
themselves, is what runs: memory estimates and limits, the plan of attentions, profiles and `Model.save` come with it.
"""

from pyclattn.huggingface.folder import read_folder

__all__ = ["read_folder"]
