"""The HTTP interface of model servers, as far as probes, sleep and wake need it."""
