"""Cases that were written without a look at the detectors, to measure and not to set thresholds on."""
