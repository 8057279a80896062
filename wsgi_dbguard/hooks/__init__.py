"""One module for each server: what its configuration has to name so that pools are never shared across workers."""
