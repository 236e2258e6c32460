"""Shipped fakes, builders, clocks, checkers: products with contracts, not mocks."""
