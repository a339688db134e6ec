"""Models by name or path: `load`, `save`, and the fingerprints that tie a `.tok` file to the code it is made in.

`titokc.weights.places` knows the places and downloads, `titokc.weights.tensors` reads and writes the files, and
`titokc.models` has the architectures. torch is imported when a model is loaded.
"""

from titokc.weights.fingerprint import fingerprints
from titokc.weights.load import load, load_files
from titokc.weights.places import fetch, find, locate
from titokc.weights.save import save

__all__ = ["fetch", "find", "fingerprints", "load", "load_files", "locate", "save"]
