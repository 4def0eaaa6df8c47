"""Live sound -> detections: resampling, high-pass, acoustic model, beam search and endpoint."""
