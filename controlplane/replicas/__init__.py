"""Wanted replicas into running ones: placement, launch, adoption, drain, stop."""
