"""Dense tasks: a class or a number for each pixel, read off the tokens of an encoder."""
