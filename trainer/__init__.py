"""Gate-checked LoRA training: parameters, data, training, evaluation, gates and reports.

Importing this package never imports torch; torch lives in `model`, `train`, `generate` and `base` only.
"""

from __future__ import annotations

__version__ = "0.1.0"
