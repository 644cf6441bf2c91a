"""Export of trained models to TFLite, SavedModel and ONNX, and a codec for devices."""
