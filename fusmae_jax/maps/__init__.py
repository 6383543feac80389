"""Pictures and searches of embeddings: `python main.py map`."""
