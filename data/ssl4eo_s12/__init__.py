"""SSL4EO-S12: pairs of Sentinel-1 and Sentinel-2 patches around the world, four seasons each."""
