"""From samples and an error to a plan: what each attention of a model runs as, at the least time.

The model runs exactly on each sample. At every attention, settings are tried on what it is given (`probing`), so that
one attention's arrays are held at a time; what was measured is kept (`records`), and the choice is arithmetic on it
(`solving`). docs/calibration.md tells how far a plan can be trusted.
"""

from pyclattn.calibration.calibrate import calibrate
from pyclattn.calibration.checking import errors_of
from pyclattn.calibration.quantize import Quantized, quantize

__all__ = ["Quantized", "calibrate", "errors_of", "quantize"]
