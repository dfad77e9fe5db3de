"""Parts of detectors: anchors, assigners, coders, proposals, records of predictions, postprocessing."""
