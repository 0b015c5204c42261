"""The data plane: TensorFlow Serving's API over the same SavedModels, for one machine without its binary."""
