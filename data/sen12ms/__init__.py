"""SEN12MS: triplets of Sentinel-1, Sentinel-2 and MODIS land cover from all continents."""
