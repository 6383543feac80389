"""The plan of a run: its needs on a named machine, from the compiled step, before anything is rented."""
