"""GEO-Bench-2: the benchmark's tortilla containers; so far benv2, a selection of BigEarthNet v2."""
