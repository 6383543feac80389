"""Dense tasks: a class for each pixel, read off the tokens of an encoder."""
