"""BigEarthNet v2 (reBEN): pairs of Sentinel-1 and Sentinel-2 patches, class lists and maps of land cover."""
