"""TensorFlow Serving's messages under a package name of ours."""
