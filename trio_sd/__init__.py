"""Service discovery for Trio programs, in the dialect of Prometheus."""
