"""Array aliases, the one legend of letters, and the rows that go together.

==  ==========================================  ==  ==========================================
B   batch                                       E   width of a value, per head
H   heads                                       C   clusters
L   length of the queries                       K   keys chosen per cluster (``topk``)
S   length of the keys                          M   centroids out (Centroid Transformers)
D   width of a query or key, per head           T   tokens of a packed batch, all sequences together
==  ==========================================  ==  ==========================================

How kernels see a batch
-----------------------
Every batch is ragged. Sequence ``s`` is the tokens ``spans[s] = [batch, start, stop]``: token ``t`` in
``start:stop`` is row ``index[t]`` (or row ``t`` where ``index`` is None) of ``array[batch, head]``. A padded array with
lengths has one span a batch entry and no index; with holes in its mask, an index of the valid rows; a packed array
has batch 0 and spans from its offsets. Clusters of sequence ``s`` are ``cluster_offsets[s]:cluster_offsets[s + 1]``.

A kernel does the rows of ``tasks`` whose numbers it draws from ``counter``, until none is left; any number of callers
may draw from one counter. It writes into the arrays it is given, checks nothing and allocates at most one block.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]
# Rows of a panel of the widest instruction set, whole panels of the others, which have 24, 12 and 8 lanes
# (`_ext/tile.h`). A part of a panel costs as much as the whole.
PANEL = 48
Given = Any  # what a caller may hand in: anything numpy.asarray understands
