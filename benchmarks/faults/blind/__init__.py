"""Programs written without a look at the detectors, to measure how far the rules carry."""
