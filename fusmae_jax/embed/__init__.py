"""Embeddings of georeferenced images of any size: `python main.py encode`."""
