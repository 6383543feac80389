"""BigEarthNet-MM v1: pairs of Sentinel-1 and Sentinel-2 patches with land-cover labels."""
