"""What a run will need on a named machine, from its compiled train step, before anything is rented."""
