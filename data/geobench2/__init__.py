"""GEO-Bench-2: the benchmark's tortilla containers; benv2, a selection of BigEarthNet v2, and so2sat."""
