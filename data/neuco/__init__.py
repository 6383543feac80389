"""NeuCo-Bench: one embedding a location of SSL4EO-S12-downstream, as the CSV that the benchmark reads."""
