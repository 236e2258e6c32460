"""One port for all deployments: route table, weights, drain order, HAProxy rendering."""
