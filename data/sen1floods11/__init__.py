"""Sen1Floods11: Sentinel-1 and Sentinel-2 chips of eleven floods with surface water labelled by hand."""
