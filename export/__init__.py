"""Takes trained models out of Python: TFLite, SavedModel and ONNX, and a codec for devices."""
