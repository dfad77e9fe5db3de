"""Reading ground truth and detections."""
