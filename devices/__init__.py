"""Device kinds, one file each, behind one set of contracts."""
