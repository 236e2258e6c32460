"""A fleet of replicas in virtual time: a day of requests through any scaling policy in seconds."""
