"""A user's own Sentinel-1 and Sentinel-2 GeoTIFFs."""
