"""How loops run: driver, supervisor, claims, tick log."""
