"""Video files, read and written with OpenCV (extra ``video``)."""
