"""`predict`: a scene of any size to a map of classes, by an encoder and a head of a dense probe."""
