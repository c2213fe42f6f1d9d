"""Files and JSON: fingerprints, artifacts, records, and the store that holds them."""
