"""Programs written after the rules had been mended on ``blind``, by people who had not seen the detectors."""
