"""The real gateway: HAProxy driven through its runtime API, with the activator beside it."""
