"""Files and JSON: fingerprints, artifacts, records, and the store that holds them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds mixpool's packages. Ask for it here: this file never moves, others may."""
