"""Frames of video files, in and out, by OpenCV (extra ``video``)."""
